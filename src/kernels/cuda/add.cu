// Sums in place and over batch entries, V values a thread.
#include "common.cuh"

// sum += part.
template <class T, class U, int V> __device__ void add(T* sum, const U* part, long count) {
    const long first = first_of_thread<V>(count);
    if (first < 0) return;
    float values[V], more[V];
    load(values, sum + first), load(more, part + first);
    for (int i = 0; i < V; i++) values[i] += more[i];
    store(sum + first, values);
}

// out = the sum of `entries` parts of `count` values, one after the other; added to what out holds, if `adds`.
template <int V> __device__ void sum_entries(const float* parts, float* out, long count, int entries, int adds) {
    const long first = first_of_thread<V>(count);
    if (first < 0) return;
    float sum[V] = {}, values[V];
    if (adds) load(sum, out + first);
    for (int entry = 0; entry < entries; entry++) {
        load(values, parts + entry * count + first);
        for (int i = 0; i < V; i++) sum[i] += values[i];
    }
    store(out + first, sum);
}

#define ADD(NAME, T, U, V)                                                                                             \
    extern "C" __global__ void add_##NAME##_##V(T* sum, const U* part, long count) {                                   \
        add<T, U, V>(sum, part, count);                                                                                \
    }

ADD(bf16_bf16, bf16, bf16, 8)
ADD(bf16_bf16, bf16, bf16, 1)
ADD(f32_f32, float, float, 4)
ADD(f32_f32, float, float, 1)
ADD(f32_bf16, float, bf16, 4)
ADD(f32_bf16, float, bf16, 1)

#define SUM_ENTRIES(V)                                                                                                 \
    extern "C" __global__ void sum_entries_##V(const float* parts, float* out, long count, int entries, int adds) {    \
        sum_entries<V>(parts, out, count, entries, adds);                                                              \
    }

SUM_ENTRIES(4)
SUM_ENTRIES(1)
