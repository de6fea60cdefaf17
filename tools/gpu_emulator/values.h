// Numbers of the types that tensors have, by address and place.
#pragma once
#include <cstdint>
#include <cstring>

enum class Type { F32, F64, BF16, F16, U8, U32, I64 };

inline double get(Type type, const void* from, size_t place) {
    switch (type) {
        case Type::F32: return static_cast<const float*>(from)[place];
        case Type::F64: return static_cast<const double*>(from)[place];
        case Type::F16: return static_cast<const _Float16*>(from)[place];
        case Type::U8: return static_cast<const uint8_t*>(from)[place];
        case Type::U32: return static_cast<const uint32_t*>(from)[place];
        case Type::I64: return static_cast<const int64_t*>(from)[place];
        case Type::BF16: break;
    }
    const uint32_t bits = uint32_t(static_cast<const uint16_t*>(from)[place]) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline void put(Type type, void* to, size_t place, double value) {
    switch (type) {
        case Type::F32: static_cast<float*>(to)[place] = value; return;
        case Type::F64: static_cast<double*>(to)[place] = value; return;
        case Type::F16: static_cast<_Float16*>(to)[place] = value; return;
        case Type::U8: static_cast<uint8_t*>(to)[place] = value; return;
        case Type::U32: static_cast<uint32_t*>(to)[place] = value; return;
        case Type::I64: static_cast<int64_t*>(to)[place] = value; return;
        case Type::BF16: break;
    }
    const float narrow = value;
    uint32_t bits;
    memcpy(&bits, &narrow, 4);
    if ((bits & 0x7fffffff) <= 0x7f800000) bits += 0x7fff + (bits >> 16 & 1);
    static_cast<uint16_t*>(to)[place] = bits >> 16;
}
