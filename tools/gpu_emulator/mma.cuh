// What src/kernels/cuda/mma.cuh has as instructions of sm_80, in words of the PTX manual ("Matrix Fragments for
// mma.m16n8k16", "ldmatrix").
#pragma once
#include "device.h"

inline float low_bf16(uint32_t pair) { return __bfloat162float({uint16_t(pair & 0xffff)}); }
inline float high_bf16(uint32_t pair) { return __bfloat162float({uint16_t(pair >> 16)}); }

struct MmaOperands {
    uint32_t a[4], b[2];
};

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t b0, const uint32_t b1) {
    collective(MmaOperands{{a[0], a[1], a[2], a[3]}, {b0, b1}}, [&](auto get) {
        // Of a, value i of a lane has row g for i in {0, 1, 4, 5}, else g + 8; column 2t + i % 2, and 8 more from i = 4
        // on. Of b, value i has row 2t + i % 2, and 8 more from i = 2 on; column g.
        float left[16][16], right[16][8];
        for (int lane = 0; lane < LANES; lane++) {
            const MmaOperands of = get(lane);
            const int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 8; i++) {
                const uint32_t pair = of.a[i / 2];
                left[g + i / 2 % 2 * 8][2 * t + i % 2 + i / 4 * 8] = i % 2 ? high_bf16(pair) : low_bf16(pair);
            }
            for (int i = 0; i < 4; i++) {
                const uint32_t pair = of.b[i / 2];
                right[2 * t + i % 2 + i / 2 * 8][g] = i % 2 ? high_bf16(pair) : low_bf16(pair);
            }
        }
        const int g = lane_index() / 4, t = lane_index() % 4;
        for (int i = 0; i < 4; i++) {
            for (int k = 0; k < 16; k++) d[i] += left[g + i / 2 * 8][k] * right[k][2 * t + i % 2];
        }
        return 0;
    });
}

inline void load_matrices(uint32_t (&out)[4], const void* row, bool transposed) {
    if (uintptr_t(row) % 16) {
        fprintf(stderr, "gpu_emulator: ldmatrix of an address that 16 does not divide\n");
        abort();
    }
    collective(row, [&](auto get) {
        const int g = lane_index() / 4, t = lane_index() % 4;
        for (int matrix = 0; matrix < 4; matrix++) {
            uint16_t values[2];
            for (int i = 0; i < 2; i++) {
                const int row = transposed ? 2 * t + i : g, column = transposed ? g : 2 * t + i;
                values[i] = static_cast<const uint16_t*>(get(8 * matrix + row))[column];
            }
            out[matrix] = values[0] | uint32_t(values[1]) << 16;
        }
        return 0;
    });
}

inline void load_matrices(uint32_t (&out)[4], const void* row) { load_matrices(out, row, false); }
inline void load_matrices_transposed(uint32_t (&out)[4], const void* row) { load_matrices(out, row, true); }

inline uint32_t pack_bf16(float low, float high) {
    return __float2bfloat16(low).bits | uint32_t(__float2bfloat16(high).bits) << 16;
}

inline float exp2_approx(float x) {
    const float power = exp2f(x);
    return power < 1.17549435e-38f ? 0.f : power;
}

template <int BYTES> inline void copy_async(void* to, const void* from, bool valid) {
    if (uintptr_t(to) % BYTES || uintptr_t(from) % BYTES) {
        fprintf(stderr, "gpu_emulator: cp.async of an address that %d does not divide\n", BYTES);
        abort();
    }
    machine.current->open.push_back({to, from, BYTES, valid});
    memset(to, 0xff, BYTES);  // no number, until the thread waits
}

inline void commit_copies() {
    machine.current->groups.push_back(std::move(machine.current->open));
    machine.current->open.clear();
}

template <int LEFT> inline void wait_for_copies() {
    auto& groups = machine.current->groups;
    while (int(groups.size()) > LEFT) {
        for (const Copy& copy : groups.front()) {
            if (copy.valid) {
                memcpy(copy.to, copy.from, copy.bytes);
            } else {
                memset(copy.to, 0, copy.bytes);
            }
        }
        groups.erase(groups.begin());
    }
}
