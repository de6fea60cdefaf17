// The matrix products of cuBLASLt (libcublasLt.so.13) with the epilogues that seg4diff asks for, as loops that sum in f64.
// What would be undefined on a GPU, or depend on when it ran, is an error.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>

#include "values.h"

namespace {
constexpr int SUCCESS = 0, INVALID_VALUE = 7, INTERNAL_ERROR = 14, NOT_SUPPORTED = 15;
// cublasLtEpilogue_t
constexpr int BIAS = 4, GELU = 32, GELU_BACKWARD = 64, KEPT = 128;
// cublasLtReductionScheme_t
constexpr uint32_t IN_PLACE = 1;
// Inner sizes above this are summed in parts, in a workspace.
constexpr long LARGEST_INNER = 512;
constexpr size_t WORKSPACE = 4096;

struct Layout {
    int type;
    long rows, columns, stride;
    int entries = 1;
    long entry = 0;

    long place(long number, bool transposed, long row, long column) const {
        return number * entry + (transposed ? row * stride + column : column * stride + row);
    }
    Type of() const { return type == 0 ? Type::F32 : Type::BF16; }
};

struct Description {
    int transposes[2] = {};
    int epilogue = 1;
    void *bias = nullptr, *kept = nullptr;
    long kept_stride = 0;
};

struct Limits {
    uint64_t workspace = 0;
    uint32_t schemes = 7;
    uint32_t alignments[4] = {256, 256, 256, 256};
};

struct Algorithm {
    uint64_t rows, columns, inner, epilogue, alignments[4];
};

// cublasLtMatmulHeuristicResult_t
struct Found {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

int wrong(const char* what) { return fprintf(stderr, "gpu_emulator: cuBLASLt: %s\n", what), INTERNAL_ERROR; }

template <class T> int set(T& to, const void* from, size_t bytes) {
    return bytes == sizeof(T) ? (memcpy(&to, from, bytes), SUCCESS) : wrong("a value of another size");
}

double gelu(double x) { return 0.5 * x * (1 + tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

double gelu_derivative(double x) {
    const double factor = std::sqrt(2 / M_PI), t = tanh(factor * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * factor * (1 + 3 * 0.044715 * x * x);
}
}  // namespace

extern "C" {
void gpu_emulator_give(void* stream, std::function<void()>* run);

int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    *layout = new Layout{type, long(rows), long(columns), stride};
    return stride < long(rows) ? wrong("columns overlap") : SUCCESS;
}
int cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, SUCCESS; }
int cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
        case 5: return set(layout->entries, value, bytes);
        case 6: return set(layout->entry, value, bytes);
    }
    return wrong("another attribute of a layout");
}

int cublasLtMatmulDescCreate(Description** description, int sums, int scale) {
    *description = new Description;
    return sums == 68 && scale == 0 ? SUCCESS : wrong("sums in another type than f32");
}
int cublasLtMatmulDescDestroy(Description* description) { return delete description, SUCCESS; }
int cublasLtMatmulDescSetAttribute(Description* description, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
        case 3: return set(description->transposes[0], value, bytes);
        case 4: return set(description->transposes[1], value, bytes);
        case 7: return set(description->epilogue, value, bytes);
        case 8: return set(description->bias, value, bytes);
        case 11: return set(description->kept, value, bytes);
        case 12: return set(description->kept_stride, value, bytes);
    }
    return wrong("another attribute of a product");
}

int cublasLtMatmulPreferenceCreate(Limits** limits) { return *limits = new Limits, SUCCESS; }
int cublasLtMatmulPreferenceDestroy(Limits* limits) { return delete limits, SUCCESS; }
int cublasLtMatmulPreferenceSetAttribute(Limits* limits, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
        case 1: return set(limits->workspace, value, bytes);
        case 3: return set(limits->schemes, value, bytes);
        case 5: case 6: case 7: case 8: return set(limits->alignments[attribute - 5], value, bytes);
    }
    return wrong("another limit");
}

int cublasLtMatmulAlgoGetHeuristic(void*, Description* of, Layout* a, Layout* b, Layout*, Layout* out, Limits* limits, int,
                                   Found* found, int* count) {
    *count = 0;
    const bool has_bias = of->epilogue & BIAS, has_kept = of->epilogue & KEPT;
    const long inner = of->transposes[0] ? a->rows : a->columns;
    if ((of->transposes[0] ? a->columns : a->rows) != out->rows || (of->transposes[1] ? b->rows : b->columns) != out->columns ||
        (of->transposes[1] ? b->columns : b->rows) != inner || a->type != out->type || b->type != out->type ||
        a->entries != out->entries || b->entries != out->entries)
        return wrong("matrices that do not fit");
    if (has_bias != !!of->bias || has_kept != !!of->kept) return wrong("an epilogue without its tensors");
    if (has_kept && (of->kept_stride % 8 || of->kept_stride < out->rows)) return INVALID_VALUE;
    if (limits->schemes & IN_PLACE) return wrong("partial sums in place");
    // One that cuBLASLt has no algorithm for.
    if (out->columns == 1 && out->entries == 1) return NOT_SUPPORTED;
    const size_t workspace = inner > LARGEST_INNER ? WORKSPACE : 0;
    if (workspace > limits->workspace) return NOT_SUPPORTED;
    Algorithm algorithm = {uint64_t(out->rows), uint64_t(out->columns), uint64_t(inner), uint64_t(of->epilogue)};
    for (int i = 0; i < 4; i++) algorithm.alignments[i] = limits->alignments[i];
    *found = {algorithm, workspace, SUCCESS, 1};
    return *count = 1, SUCCESS;
}

int cublasLtMatmul(void*, Description* description, const void* alpha, const void* a, Layout* a_layout, const void* b,
                   Layout* b_layout, const void* beta, const void* c, Layout*, void* d, Layout* d_layout,
                   const Algorithm* algorithm, void* workspace, size_t workspace_size, void* stream) {
    const Description of = *description;
    const Layout in_a = *a_layout, in_b = *b_layout, in_d = *d_layout;
    const long inner = of.transposes[0] ? in_a.rows : in_a.columns;
    const void* addresses[] = {a, b, c, d};
    for (int i = 0; i < 4; i++) {
        if (uint64_t(addresses[i]) % algorithm->alignments[i]) return wrong("a matrix at another address than was said");
    }
    if (algorithm->rows != in_d.rows || algorithm->columns != in_d.columns || algorithm->inner != inner ||
        algorithm->epilogue != of.epilogue)
        return wrong("the algorithm of another product");
    const bool in_parts = inner > LARGEST_INNER;
    if (in_parts && (!workspace || workspace_size < WORKSPACE)) return wrong("no workspace");
    const float scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
    if (keep) return wrong("a sum");
    const auto product = [=] {
        if (in_parts) memset(workspace, 0xff, workspace_size);
        const Type type = in_d.of();
        for (long number = 0; number < in_d.entries; number++) {
            for (long column = 0; column < in_d.columns; column++) {
                for (long row = 0; row < in_d.rows; row++) {
                    double sum = 0;
                    for (long i = 0; i < inner; i++) {
                        sum += get(type, a, in_a.place(number, of.transposes[0], row, i)) *
                               get(type, b, in_b.place(number, of.transposes[1], i, column));
                    }
                    sum *= scale;
                    if (of.epilogue & BIAS) sum += get(type, of.bias, row);
                    const long kept = column * of.kept_stride + row;
                    if (of.epilogue & GELU) put(type, of.kept, kept, sum), sum = gelu(sum);
                    if (of.epilogue & GELU_BACKWARD) sum *= gelu_derivative(get(type, of.kept, kept));
                    put(type, d, in_d.place(number, false, row, column), sum);
                }
            }
        }
    };
    gpu_emulator_give(stream, new std::function<void()>(product));
    return SUCCESS;
}
}
