#include "device.h"

#include <random>

Machine machine;
dim3 blockIdx, blockDim, gridDim;
alignas(16) uint4 memory[16384];  // what kernels declare as extern __shared__

constexpr size_t STACK = 256 * 1024;

static void pass(Barrier& barrier) {
    barrier.arrived = 0;
    barrier.passed++;
}

void wait_at(Barrier& barrier) {
    const long passed = barrier.passed;
    if (++barrier.arrived == barrier.living) pass(barrier);
    while (passed == barrier.passed) swapcontext(&machine.current->context, &machine.scheduler);
}

static void leave(Barrier& barrier) {
    barrier.living--;
    if (barrier.living && barrier.arrived == barrier.living) pass(barrier);
}

// What every kernel is called as: the integers and addresses that it takes are its first arguments of that kind in the
// calling convention of x86-64, whatever stands between them, and so are its floats.
typedef void (*Kernel)(long, long, long, long, long, long, long, long, long, long, long, long, long, long, long, long,
                       long, long, long, long, float, float, float, float, float, float, float, float);
static std::function<void()> body;

static void run_fiber() {
    body();
    machine.current->done = true;
    leave(machine.warps[warp_index()]);
    leave(machine.block);
    swapcontext(&machine.current->context, &machine.scheduler);
}

// Runs the fibers of a block, its warps in random order and for a random while each: what no barrier orders may happen
// in any order.
static void run_block(int threads, std::mt19937& random) {
    std::vector<int> order(machine.warps.size());
    for (size_t warp = 0; warp < order.size(); warp++) order[warp] = warp;
    for (long round = 0; machine.block.living; round++) {
        if (round > 50000000) {
            fprintf(stderr, "gpu_emulator: the threads of a block wait for each other for ever\n");
            abort();
        }
        std::shuffle(order.begin(), order.end(), random);
        const int turns = 1 + random() % 40;
        for (int warp : order) {
            for (int turn = 0; turn < turns; turn++) {
                for (int thread = warp * LANES; thread < std::min(threads, (warp + 1) * LANES); thread++) {
                    if (machine.fibers[thread].done) continue;
                    machine.current = &machine.fibers[thread];
                    swapcontext(&machine.scheduler, &machine.current->context);
                }
            }
        }
    }
}

extern "C" void emulate(void* kernel, const int* grid, int threads, const long* i, const float* f, int seed) {
    std::mt19937 random(seed);
    static std::vector<char*> stacks;
    while (int(stacks.size()) < threads) stacks.push_back(static_cast<char*>(malloc(STACK)));
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    body = [=] {
        reinterpret_cast<Kernel>(kernel)(i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[7], i[8], i[9], i[10], i[11],
                                         i[12], i[13], i[14], i[15], i[16], i[17], i[18], i[19], f[0], f[1], f[2], f[3],
                                         f[4], f[5], f[6], f[7]);
    };
    const int warps = (threads + LANES - 1) / LANES;
    for (int block = 0; block < grid[0] * grid[1] * grid[2]; block++) {
        blockIdx = {block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1]};
        machine.fibers.assign(threads, Fiber());
        machine.block = {threads};
        machine.warps.assign(warps, Barrier());
        machine.shown.assign(warps, std::vector<char>(LANES * SHOWN_BYTES));
        for (int thread = 0; thread < threads; thread++) {
            Fiber& fiber = machine.fibers[thread];
            fiber.thread = {thread, 0, 0};
            machine.warps[thread / LANES].living++;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = stacks[thread];
            fiber.context.uc_stack.ss_size = STACK;
            fiber.context.uc_link = &machine.scheduler;
            makecontext(&fiber.context, run_fiber, 0);
        }
        run_block(threads, random);
    }
}
