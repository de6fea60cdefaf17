// Candle's own kernels (crate candle-kernels), those that seg4diff launches, as loops over everything that a launch
// covers.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <string>

#include "values.h"

// The arguments of a launch, eight bytes of each.
struct Launch {
    const uint64_t* values;
    unsigned blocks;

    template <class T> T get(int number) const {
        T value;
        memcpy(&value, &values[number], sizeof(T));
        return value;
    }
    size_t size(int number) const { return get<size_t>(number); }
    void* address(int number) const { return get<void*>(number); }
    const size_t* sizes(int number) const { return get<const size_t*>(number); }
};

struct CandleKernel {
    int arguments = 0;
    std::function<void(const uint64_t* values, unsigned blocks)> run;
};

// Where value `place` of a tensor lies; without `dims` it is contiguous.
inline size_t strided(size_t place, size_t rank, const size_t* dims, const size_t* strides) {
    if (!dims) return place;
    size_t at = 0;
    for (size_t dim = rank; dim-- > 0; place /= dims[dim]) at += place % dims[dim] * strides[dim];
    return at;
}

// Reads input `number` of a kernel whose arguments begin with the count, the rank, and the dims followed by `number +
// 1` sets of strides.
struct Input {
    Type type;
    const void* from;
    size_t rank;
    const size_t *dims, *strides;

    Input(Type type, const Launch& launch, int address, int number = 0)
        : type(type),
          from(launch.address(address)),
          rank(launch.size(1)),
          dims(launch.sizes(2)),
          strides(dims ? dims + (1 + number) * rank : nullptr) {}
    double at(size_t place) const { return get(type, from, strided(place, rank, dims, strides)); }
};

typedef std::function<void(const Launch&)> Loop;

inline CandleKernel kernel(int arguments, Loop loop) {
    return {arguments, [=](const uint64_t* values, unsigned blocks) { loop({values, blocks}); }};
}

typedef double (*OfOne)(double);
typedef double (*OfTwo)(double, double);

inline const std::map<std::string, OfOne>& of_one() {
    static const std::map<std::string, OfOne> all = {
        {"ucopy", [](double x) { return x; }},
        {"uneg", [](double x) { return -x; }},
        {"uabs", [](double x) { return fabs(x); }},
        {"usqr", [](double x) { return x * x; }},
        {"usqrt", [](double x) { return sqrt(x); }},
        {"urecip", [](double x) { return 1 / x; }},
        {"uexp", [](double x) { return exp(x); }},
        {"ulog", [](double x) { return log(x); }},
        {"usin", [](double x) { return sin(x); }},
        {"ucos", [](double x) { return cos(x); }},
        {"utanh", [](double x) { return tanh(x); }},
        {"usign", [](double x) { return double((x > 0) - (x < 0)); }},
        {"urelu", [](double x) { return x > 0 ? x : 0; }},
        {"usilu", [](double x) { return x / (1 + exp(-x)); }},
        {"usigmoid", [](double x) { return 1 / (1 + exp(-x)); }},
        {"ugelu", [](double x) { return x / 2 * (1 + tanh(0.7978845608 * (x + 0.044715 * x * x * x))); }},
        {"ugelu_erf", [](double x) { return x / 2 * (1 + erf(x * 0.7071067811865475)); }},
    };
    return all;
}

inline const std::map<std::string, OfTwo>& of_two() {
    static const std::map<std::string, OfTwo> all = {
        {"badd", [](double x, double y) { return x + y; }},
        {"bsub", [](double x, double y) { return x - y; }},
        {"bmul", [](double x, double y) { return x * y; }},
        {"bdiv", [](double x, double y) { return x / y; }},
        {"bmaximum", [](double x, double y) { return x > y ? x : y; }},
        {"bminimum", [](double x, double y) { return x < y ? x : y; }},
        {"gt", [](double x, double y) { return double(x > y); }},
        {"ge", [](double x, double y) { return double(x >= y); }},
        {"lt", [](double x, double y) { return double(x < y); }},
        {"le", [](double x, double y) { return double(x <= y); }},
        {"eq", [](double x, double y) { return double(x == y); }},
        {"ne", [](double x, double y) { return double(x != y); }},
    };
    return all;
}

// Takes the type's name off the end of a kernel's.
inline bool take_type(std::string& name, Type& type) {
    static const std::pair<const char*, Type> types[] = {
        {"_bf16", Type::BF16}, {"_f16", Type::F16}, {"_f32", Type::F32}, {"_f64", Type::F64},
        {"_u8", Type::U8},     {"_u32", Type::U32}, {"_i64", Type::I64}};
    for (const auto& [end, of] : types) {
        const size_t length = strlen(end);
        if (name.size() >= length && name.compare(name.size() - length, length, end) == 0) {
            name.resize(name.size() - length);
            type = of;
            return true;
        }
    }
    return false;
}

// Elementwise kernels and casts.
inline CandleKernel elementwise(const std::string& name, Type type) {
    if (name.rfind("cast_", 0) == 0) {
        std::string from = name.substr(4);
        Type source;
        if (!take_type(from, source)) return {};
        return kernel(5, [=](const Launch& launch) {
            const Input x(source, launch, 3);
            for (size_t i = 0; i < launch.size(0); i++) put(type, launch.address(4), i, x.at(i));
        });
    }
    if (const auto found = of_one().find(name); found != of_one().end()) {
        return kernel(5, [=, function = found->second](const Launch& launch) {
            const Input x(type, launch, 3);
            for (size_t i = 0; i < launch.size(0); i++) put(type, launch.address(4), i, function(x.at(i)));
        });
    }
    if (const auto found = of_two().find(name); found != of_two().end()) {
        const Type to = name[0] == 'b' ? type : Type::U8;
        return kernel(6, [=, function = found->second](const Launch& launch) {
            const Input x(type, launch, 3), y(type, launch, 4, 1);
            for (size_t i = 0; i < launch.size(0); i++) put(to, launch.address(5), i, function(x.at(i), y.at(i)));
        });
    }
    if (name == "upowf") {
        return kernel(6, [=](const Launch& launch) {
            const Input x(type, launch, 4);
            const double power = get(type, &launch.values[3], 0);
            for (size_t i = 0; i < launch.size(0); i++) put(type, launch.address(5), i, pow(x.at(i), power));
        });
    }
    if (name == "affine") {
        return kernel(7, [=](const Launch& launch) {
            const Input x(type, launch, 3);
            const double by = get(type, &launch.values[5], 0), plus = get(type, &launch.values[6], 0);
            for (size_t i = 0; i < launch.size(0); i++) put(type, launch.address(4), i, x.at(i) * by + plus);
        });
    }
    if (name == "const_set") {
        return kernel(5, [=](const Launch& launch) {
            const size_t rank = launch.size(1), *dims = launch.sizes(2);
            for (size_t i = 0; i < launch.size(0); i++) {
                const size_t at = strided(i, rank, dims, dims ? dims + rank : nullptr);
                put(type, launch.address(4), at, get(type, &launch.values[3], 0));
            }
        });
    }
    return {};
}

// Kernels that a row of blocks shares, and those that gather and scatter.
inline CandleKernel structured(const std::string& name, Type type) {
    if (name == "copy2d") {
        return kernel(6, [=](const Launch& launch) {
            const size_t rows = launch.get<uint32_t>(2), columns = launch.get<uint32_t>(3);
            const size_t from_stride = launch.get<uint32_t>(4), to_stride = launch.get<uint32_t>(5);
            for (size_t i = 0; i < rows * columns; i++) {
                const size_t row = i / columns, column = i % columns;
                const double value = get(type, launch.address(0), row * from_stride + column);
                put(type, launch.address(1), row * to_stride + column, value);
            }
        });
    }
    if (name == "fast_sum" || name == "fast_sum_small" || name == "fast_max" || name == "fast_min") {
        return kernel(6, [=](const Launch& launch) {
            const size_t count = launch.size(0), each = launch.size(1), rank = launch.size(2), *dims = launch.sizes(3);
            for (size_t out = 0; out < (name == "fast_sum_small" ? count : launch.blocks); out++) {
                double result = name == "fast_max" ? -INFINITY : name == "fast_min" ? INFINITY : 0;
                for (size_t i = out * each; i < (out + 1) * each; i++) {
                    const size_t at = strided(i, rank, dims, dims ? dims + rank : nullptr);
                    const double value = get(type, launch.address(4), at);
                    result = name == "fast_max"   ? fmax(result, value)
                             : name == "fast_min" ? fmin(result, value)
                                                  : result + value;
                }
                put(type, launch.address(5), out, result);
            }
        });
    }
    if (name == "softmax") {
        return kernel(3, [=](const Launch& launch) {
            const size_t width = launch.get<int>(2);
            for (size_t row = 0; row < launch.blocks; row++) {
                const auto x = [&](size_t i) { return get(type, launch.address(0), row * width + i); };
                double largest = -INFINITY, sum = 0;
                for (size_t i = 0; i < width; i++) largest = fmax(largest, x(i));
                for (size_t i = 0; i < width; i++) sum += exp(x(i) - largest);
                for (size_t i = 0; i < width; i++) {
                    put(type, launch.address(1), row * width + i, exp(x(i) - largest) / sum);
                }
            }
        });
    }
    if (name == "layernorm" || name == "rmsnorm") {
        const bool centred = name == "layernorm";
        return kernel(centred ? 7 : 6, [=](const Launch& launch) {
            const size_t width = launch.get<int>(centred ? 4 : 3);
            const float epsilon = launch.get<float>(centred ? 6 : 5);
            for (size_t row = 0; row < launch.blocks; row++) {
                const auto x = [&](size_t i) { return get(type, launch.address(0), row * width + i); };
                double mean = 0, variance = 0;
                for (size_t i = 0; i < width && centred; i++) mean += x(i) / width;
                for (size_t i = 0; i < width; i++) variance += (x(i) - mean) * (x(i) - mean) / width;
                for (size_t i = 0; i < width; i++) {
                    const double normed = (x(i) - mean) / sqrt(variance + epsilon) * get(type, launch.address(2), i);
                    const double bias = centred ? get(type, launch.address(3), i) : 0;
                    put(type, launch.address(1), row * width + i, normed + bias);
                }
            }
        });
    }
    if (name == "im2col") {
        return kernel(11, [=](const Launch& launch) {
            const size_t out_height = launch.size(1), out_width = launch.size(2), height = launch.size(3);
            const size_t width = launch.size(4), stride = launch.size(5), padding = launch.size(6);
            const size_t dilation = launch.size(7), *dims = launch.sizes(8), *strides = dims + 4;
            for (size_t i = 0; i < launch.size(0); i++) {
                size_t left = i;
                const auto take = [&](size_t of) {
                    const size_t place = left % of;
                    left /= of;
                    return place;
                };
                const size_t in_x = take(width) * dilation, in_y = take(height) * dilation, channel = take(dims[1]);
                const size_t x = take(out_width) * stride + in_x, y = take(out_height) * stride + in_y, batch = left;
                const bool outside = y < padding || y >= dims[2] + padding || x < padding || x >= dims[3] + padding;
                const size_t at =
                    batch * strides[0] + channel * strides[1] + (y - padding) * strides[2] + (x - padding) * strides[3];
                put(type, launch.address(10), i, outside ? 0 : get(type, launch.address(9), at));
            }
        });
    }
    if (name == "upsample_nearest2d") {
        return kernel(7, [=](const Launch& launch) {
            const size_t out_width = launch.size(0), out_height = launch.size(1), *dims = launch.sizes(4);
            const double by_x = launch.get<double>(2), by_y = launch.get<double>(3);
            for (size_t i = 0; i < dims[0] * dims[1] * out_height * out_width; i++) {
                const size_t x = i % out_width, y = i / out_width % out_height, map = i / out_width / out_height;
                const size_t from_x = std::min(size_t(x * by_x), dims[3] - 1);
                const size_t from_y = std::min(size_t(y * by_y), dims[2] - 1);
                const size_t *strides = dims + 4, channel = map % dims[1], batch = map / dims[1];
                const size_t at = batch * strides[0] + channel * strides[1] + from_y * strides[2] + from_x * strides[3];
                put(type, launch.address(6), i, get(type, launch.address(5), at));
            }
        });
    }
    if (name == "is_u32" || name == "is_i64") {
        const Type index = name == "is_u32" ? Type::U32 : Type::I64;
        return kernel(10, [=](const Launch& launch) {
            const size_t from_size = launch.size(7), count = launch.size(8), inner = launch.size(9);
            for (size_t i = 0; i < launch.size(0); i++) {
                const size_t outer = i / (count * inner), place = i / inner % count;
                const size_t chosen = get(index, launch.address(3), place);
                const double value = get(type, launch.address(4), (outer * from_size + chosen) * inner + i % inner);
                put(type, launch.address(5), i, value);
            }
        });
    }
    if (name == "ia_u32" || name == "ia_i64") {
        const Type index = name == "ia_u32" ? Type::U32 : Type::I64;
        return kernel(8, [=](const Launch& launch) {
            const size_t count = launch.size(1), outers = launch.size(4), from_size = launch.size(5);
            const size_t to_size = launch.size(6), inner = launch.size(7);
            for (size_t i = 0; i < outers * count * inner; i++) {
                const size_t outer = i / (count * inner), place = i / inner % count;
                const size_t chosen = get(index, launch.address(0), place);
                const size_t to = (outer * to_size + chosen) * inner + i % inner;
                const double more = get(type, launch.address(2), (outer * from_size + place) * inner + i % inner);
                put(type, launch.address(3), to, get(type, launch.address(3), to) + more);
            }
        });
    }
    return {};
}

// A kernel by the name that candle launches it by; nothing to run if it is not here.
inline CandleKernel candle_kernel(std::string name) {
    Type type;
    if (!take_type(name, type)) return {};
    const CandleKernel found = elementwise(name, type);
    return found.run ? found : structured(name, type);
}
