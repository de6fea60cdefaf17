// A CUDA driver (libcuda.so.1) with one GPU, which is this CPU.
//
// What a stream is given waits: it is done, in the stream's order, when somebody must wait for it, and now and then
// some of it before. Copies from page-locked memory read it only then. A program that forgets to wait reads numbers
// that are none. Memory is given out full of NaN, with a guard behind it that is looked at when it is freed; 64 GiB of it,
// or GPU_EMULATOR_MEMORY bytes.
#include <chrono>
#include <deque>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include <dlfcn.h>

#include "candle_kernels.h"

namespace {

enum Result { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, NOT_FOUND = 500, NOT_READY = 600 };
enum Attribute { COMPUTE_CAPABILITY_MAJOR = 75, LARGEST_SHARED_MEMORY = 97, USED_MEMORY = 7, HIGHEST_USED_MEMORY = 8 };
constexpr size_t GUARD = 512;
constexpr unsigned char GUARD_BYTE = 0xa5;

[[noreturn]] void fail(const std::string& what) {
    fprintf(stderr, "gpu_emulator: %s\n", what.c_str());
    abort();
}

typedef std::chrono::steady_clock Clock;

struct Event {
    bool done = true;
    Clock::time_point when = Clock::now();
};

struct Task {
    std::function<void()> run;
    std::shared_ptr<Event> event;
};

typedef std::deque<Task> Stream;

struct KernelOf {
    std::string name;
    CandleKernel candle;       // one of candle's, or
    void* function = nullptr;  // one of ours, its emulator and the kinds of its arguments
    void (*emulate)(void*, const int*, int, const long*, const float*, int) = nullptr;
    std::string kinds;
};

std::recursive_mutex lock;
std::map<void*, Stream> streams;
std::map<void*, std::shared_ptr<Event>> events;
std::map<char*, size_t> locked_pages;
std::map<void*, size_t> allocated;
size_t used = 0, highest = 0;
const size_t memory = getenv("GPU_EMULATOR_MEMORY") ? strtoull(getenv("GPU_EMULATOR_MEMORY"), nullptr, 10) : 1ull << 36;
long handles = 1000, launches = 0;
std::mt19937 chance(1);
std::vector<void*> libraries;
std::map<std::string, std::string> signatures;
std::map<std::string, KernelOf> kernels;

// The libraries of kernels and their signatures, as build.py left them beside this library.
void open_libraries() {
    if (!libraries.empty()) return;
    Dl_info info;
    dladdr(reinterpret_cast<void*>(open_libraries), &info);
    const std::string folder = std::string(info.dli_fname).substr(0, std::string(info.dli_fname).rfind('/') + 1);
    std::ifstream list(folder + "kernels.txt");
    std::string library, name, kinds;
    while (list >> library >> name >> kinds) {
        signatures[name] = kinds;
        void* opened = dlopen((folder + library).c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!opened) fail(dlerror());
        if (libraries.empty() || libraries.back() != opened) libraries.push_back(opened);
    }
}

void do_next(Stream& stream) {
    const Task task = std::move(stream.front());
    stream.pop_front();
    if (task.run) task.run();
    if (task.event) *task.event = {true, Clock::now()};
}

void finish(void* stream) {
    while (!streams[stream].empty()) do_next(streams[stream]);
}

void finish_all() {
    for (auto& stream : streams) finish(stream.first);
}

void wait_for(const std::shared_ptr<Event>& event) {
    for (auto& [handle, stream] : streams) {
        while (!event->done && !stream.empty()) do_next(stream);
    }
}

void give(void* stream, std::function<void()> run) {
    streams[stream].push_back({std::move(run), nullptr});
    for (auto& [handle, stream] : streams) {
        for (int some = chance() % 8 == 0 ? chance() % 64 : 0; some > 0 && !stream.empty(); some--) do_next(stream);
    }
}

bool is_locked(const void* address) {
    auto after = locked_pages.upper_bound(static_cast<char*>(const_cast<void*>(address)));
    if (after == locked_pages.begin()) return false;
    --after;
    return address < after->first + after->second;
}

void* allocate(size_t bytes) {
    void* start = nullptr;
    if (posix_memalign(&start, 256, bytes + GUARD)) fail("no memory");
    memset(start, 0xff, bytes);
    memset(static_cast<char*>(start) + bytes, GUARD_BYTE, GUARD);
    allocated[start] = bytes;
    used += bytes;
    highest = std::max(highest, used);
    return start;
}

void release(void* start) {
    if (!start) return;
    const auto found = allocated.find(start);
    if (found == allocated.end()) fail("memory is freed that was not given out");
    for (size_t i = 0; i < GUARD; i++) {
        if (static_cast<unsigned char*>(start)[found->second + i] != GUARD_BYTE)
            fail("written beyond the end of memory");
    }
    used -= found->second;
    allocated.erase(found);
    free(start);
}

}  // namespace

#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock)

extern "C" {
// For the emulated cuBLAS: to do something in a stream's order.
void gpu_emulator_give(void* stream, std::function<void()>* run) {
    LOCKED;
    give(stream, [run] {
        (*run)();
        delete run;
    });
}

int cuInit(unsigned) {
    LOCKED;
    open_libraries();
    return SUCCESS;
}
int cuDeviceGet(int* device, int ordinal) { return *device = 0, ordinal ? INVALID_DEVICE : SUCCESS; }
int cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &streams, SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(void*) { return SUCCESS; }
int cuCtxGetCurrent(void** context) { return *context = &streams, SUCCESS; }
int cuCtxGetDevice(int* device) { return *device = 0, SUCCESS; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    // As the H100.
    return *value = attribute == LARGEST_SHARED_MEMORY ? 227 * 1024 : attribute == COMPUTE_CAPABILITY_MAJOR ? 9 : 1, SUCCESS;
}
int cuCtxSynchronize() {
    LOCKED;
    finish_all();
    return SUCCESS;
}

int cuStreamCreate(void** stream, unsigned) {
    LOCKED;
    *stream = reinterpret_cast<void*>(handles++);
    return SUCCESS;
}
int cuStreamSynchronize(void* stream) {
    LOCKED;
    finish(stream);
    return SUCCESS;
}
int cuStreamDestroy_v2(void* stream) { return cuStreamSynchronize(stream); }
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    LOCKED;
    give(stream, [event = events[event]] { wait_for(event); });
    return SUCCESS;
}

int cuEventCreate(void** event, unsigned) {
    LOCKED;
    *event = reinterpret_cast<void*>(handles++);
    events[*event] = std::make_shared<Event>();
    return SUCCESS;
}
int cuEventRecord(void* event, void* stream) {
    LOCKED;
    events[event] = std::make_shared<Event>(Event{false});
    streams[stream].push_back({nullptr, events[event]});
    return SUCCESS;
}
int cuEventSynchronize(void* event) {
    LOCKED;
    wait_for(events[event]);
    return SUCCESS;
}
int cuEventQuery(void* event) {
    LOCKED;
    return events[event]->done ? SUCCESS : NOT_READY;
}
int cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
    LOCKED;
    if (!events[from]->done || !events[to]->done) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(events[to]->when - events[from]->when).count();
    return SUCCESS;
}
int cuEventDestroy_v2(void*) { return SUCCESS; }
int cuProfilerStart() { return SUCCESS; }
int cuProfilerStop() { return SUCCESS; }

int cuMemAllocAsync(void** start, size_t bytes, void*) {
    LOCKED;
    // As the driver does, where memory is short what was freed is waited for.
    if (used + bytes > memory) finish_all();
    if (used + bytes > memory) return OUT_OF_MEMORY;
    *start = allocate(bytes);
    return SUCCESS;
}
int cuMemFreeAsync(void* start, void* stream) {
    LOCKED;
    give(stream, [=] { release(start); });
    return SUCCESS;
}
int cuMemAlloc_v2(void** start, size_t bytes) { return cuMemAllocAsync(start, bytes, nullptr); }
int cuMemFree_v2(void* start) {
    LOCKED;
    finish_all();
    release(start);
    return SUCCESS;
}
int cuMemHostAlloc(void** start, size_t bytes, unsigned) {
    LOCKED;
    *start = malloc(bytes);
    memset(*start, 0xff, bytes);
    locked_pages[static_cast<char*>(*start)] = bytes;
    return SUCCESS;
}
// Kept, but of no use any more: a copy that is still to come takes NaN from it.
int cuMemFreeHost(void* start) {
    LOCKED;
    memset(start, 0xff, locked_pages[static_cast<char*>(start)]);
    return SUCCESS;
}
int cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
    LOCKED;
    if (is_locked(from)) {
        give(stream, [=] { memcpy(to, from, bytes); });
    } else {
        const auto staged = std::make_shared<std::string>(static_cast<const char*>(from), bytes);
        give(stream, [=] { memcpy(to, staged->data(), bytes); });
    }
    return SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
    LOCKED;
    give(stream, [=] { memcpy(to, from, bytes); });
    if (!is_locked(to)) finish(stream);
    return SUCCESS;
}
int cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
    LOCKED;
    give(stream, [=] { memmove(to, from, bytes); });
    return SUCCESS;
}
int cuMemsetD8Async(void* start, unsigned char value, size_t bytes, void* stream) {
    LOCKED;
    give(stream, [=] { memset(start, value, bytes); });
    return SUCCESS;
}
int cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = memory - used, *total = memory, SUCCESS; }
int cuDeviceGetDefaultMemPool(void** pool, int) { return *pool = &allocated, SUCCESS; }
int cuMemPoolSetAttribute(void*, int attribute, void*) {
    LOCKED;
    if (attribute == HIGHEST_USED_MEMORY) highest = used;
    return SUCCESS;
}
int cuMemPoolGetAttribute(void*, int attribute, uint64_t* value) {
    LOCKED;
    *value = attribute == HIGHEST_USED_MEMORY ? highest : used;
    return SUCCESS;
}

int cuModuleLoadData(void** module, const void*) { return *module = &kernels, SUCCESS; }
int cuModuleUnload(void*) { return SUCCESS; }
int cuFuncSetAttribute(void*, int, int) { return SUCCESS; }
int cuModuleGetFunction(void** function, void*, const char* name) {
    LOCKED;
    KernelOf& kernel = kernels[name];
    if (kernel.name.empty()) {
        kernel.candle = candle_kernel(name);
        for (void* library : libraries) {
            void* found = dlsym(library, name);
            if (!found) continue;
            kernel.function = found;
            kernel.emulate = reinterpret_cast<decltype(kernel.emulate)>(dlsym(library, "emulate"));
            kernel.kinds = signatures[name];
        }
        if (!kernel.function && !kernel.candle.run) {
            fprintf(stderr, "gpu_emulator: no kernel %s\n", name);
            kernels.erase(name);
            return NOT_FOUND;
        }
        kernel.name = name;
    }
    *function = &kernel;
    return SUCCESS;
}
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned, unsigned, unsigned,
                   void* stream, void** arguments, void**) {
    LOCKED;
    const KernelOf& kernel = *static_cast<KernelOf*>(function);
    if (!kernel.function) {
        std::vector<uint64_t> values(kernel.candle.arguments);
        for (size_t i = 0; i < values.size(); i++) memcpy(&values[i], arguments[i], sizeof(uint64_t));
        give(stream, [=, run = kernel.candle.run]() mutable { run(values.data(), x); });
        return SUCCESS;
    }
    if (!x || !y || !z || y > 65535 || z > 65535 || threads > 1024) return INVALID_VALUE;
    struct Arguments {
        long whole[20] = {};
        float real[8] = {};
    } values;
    int whole = 0, real = 0;
    for (size_t i = 0; i < kernel.kinds.size(); i++) {
        switch (kernel.kinds[i]) {
            case 'i': values.whole[whole++] = *static_cast<int*>(arguments[i]); break;
            case 'l': values.whole[whole++] = *static_cast<long*>(arguments[i]); break;
            default: values.real[real++] = *static_cast<float*>(arguments[i]);
        }
    }
    const long number = ++launches;
    give(stream, [=, emulate = kernel.emulate, function = kernel.function] {
        const int grid[3] = {int(x), int(y), int(z)};
        emulate(function, grid, threads, values.whole, values.real, number);
    });
    return SUCCESS;
}
int cuGetErrorName(int, const char** name) { return *name = "GPU_EMULATOR", SUCCESS; }
int cuGetErrorString(int, const char** text) { return *text = "the emulated GPU has it not", SUCCESS; }
}
