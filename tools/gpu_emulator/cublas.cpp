// The matrix product of cuBLAS (libcublas.so.13) that candle and seg4diff call, as loops that sum in f64.
#include <cstdint>
#include <functional>

#include <dlfcn.h>

#include "values.h"

namespace {
void* stream_of_handle = nullptr;

// cudaDataType
Type type_of(int number) { return number == 0 ? Type::F32 : number == 2 ? Type::F16 : Type::BF16; }
}  // namespace

extern "C" {
void gpu_emulator_give(void* stream, std::function<void()>* run);

int cublasCreate_v2(void** handle) { return *handle = &stream_of_handle, 0; }
int cublasDestroy_v2(void*) { return 0; }
int cublasSetStream_v2(void*, void* stream) { return stream_of_handle = stream, 0; }

int cublasGemmStridedBatchedEx(void*, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a,
                               int a_type, int lda, long a_stride, const void* b, int b_type, int ldb, long b_stride,
                               const void* beta, void* c, int c_type, int ldc, long c_stride, int batch, int, int) {
    const float scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
    const auto product = [=] {
        const Type of_a = type_of(a_type), of_b = type_of(b_type), of_c = type_of(c_type);
        for (long entry = 0; entry < batch; entry++) {
            for (long column = 0; column < n; column++) {
                for (long row = 0; row < m; row++) {
                    double sum = 0;
                    for (long i = 0; i < k; i++) {
                        const long in_a = entry * a_stride + (transpose_a ? row * lda + i : i * lda + row);
                        const long in_b = entry * b_stride + (transpose_b ? i * ldb + column : column * ldb + i);
                        sum += get(of_a, a, in_a) * get(of_b, b, in_b);
                    }
                    const long in_c = entry * c_stride + column * ldc + row;
                    put(of_c, c, in_c, scale * sum + (keep ? keep * get(of_c, c, in_c) : 0));
                }
            }
        }
    };
    gpu_emulator_give(stream_of_handle, new std::function<void()>(product));
    return 0;
}
}
