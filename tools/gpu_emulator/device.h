// CUDA's language for a compiler that makes code for the CPU. The threads of a block are fibers of one host thread; the
// lanes of a warp meet at shuffles and matrix instructions, the block at __syncthreads. Shared memory is static memory,
// as one block runs at a time.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include <ucontext.h>

#define __global__
#define __device__
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

struct dim3 {
    int x = 1, y = 1, z = 1;
};
struct int2 {
    int x, y;
};
struct float2 {
    float x, y;
};
struct uint4 {
    uint32_t x, y, z, w;
};
struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

inline __nv_bfloat16 __float2bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// A cp.async under way: its bytes arrive when the thread waits for them, and not before.
struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    bool valid;
};

struct Fiber {
    ucontext_t context;
    dim3 thread;
    bool done = false;
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
};

// Where threads wait for each other: all that live must arrive.
struct Barrier {
    int living = 0, arrived = 0;
    long passed = 0;
};

struct Machine {
    ucontext_t scheduler;
    std::vector<Fiber> fibers;
    Fiber* current;
    Barrier block;
    std::vector<Barrier> warps;
    // What the lanes of each warp show each other.
    std::vector<std::vector<char>> shown;
};

extern Machine machine;
extern dim3 blockIdx, blockDim, gridDim;
#define threadIdx (machine.current->thread)

constexpr int LANES = 32;
constexpr int SHOWN_BYTES = 64;

void wait_at(Barrier& barrier);
inline int warp_index() { return threadIdx.x / LANES; }
inline int lane_index() { return threadIdx.x % LANES; }
inline void __syncthreads() { wait_at(machine.block); }

// Shows `mine` to the warp; `use(get)` may ask for any lane's.
template <class Value, class Use> auto collective(const Value& mine, Use use) {
    static_assert(sizeof(Value) <= SHOWN_BYTES);
    char* shown = machine.shown[warp_index()].data();
    memcpy(shown + lane_index() * SHOWN_BYTES, &mine, sizeof(Value));
    wait_at(machine.warps[warp_index()]);
    auto result = use([&](int lane) {
        Value value;
        memcpy(&value, shown + lane * SHOWN_BYTES, sizeof(Value));
        return value;
    });
    wait_at(machine.warps[warp_index()]);
    return result;
}

template <class T> T __shfl_sync(unsigned, T value, int lane) {
    return collective(value, [&](auto get) { return get(lane % LANES); });
}

template <class T> T __shfl_xor_sync(unsigned, T value, int mask) {
    return collective(value, [&](auto get) { return get(lane_index() ^ mask); });
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
