// Elements of tensors and arithmetic on them; the same results with and without vector instructions up to rounding.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct bfloat16 {
    uint16_t bits;
};

inline float widen(float value) { return value; }

inline float widen(bfloat16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline void narrow(float value, float* out) { *out = value; }

inline void narrow(float value, bfloat16* out) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    out->bits = is_nan ? 0x7fc0 : uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

// e^x for x <= 0, within 2 units in the last place; NaN stays NaN. Polynomial of Cephes' expf.
inline float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    float whole = std::floor(x * 1.44269504f + 0.5f);
    float rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float poly = 1.9875691500e-4f;
    poly = poly * rest + 1.3981999507e-3f;
    poly = poly * rest + 8.3334519073e-3f;
    poly = poly * rest + 4.1665795894e-2f;
    poly = poly * rest + 1.6666665459e-1f;
    poly = poly * rest + 5.0000001201e-1f;
    poly = poly * rest * rest + rest + 1.0f;
    int32_t power = (int32_t(whole == whole ? whole : 0.0f) + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, sizeof scale);
    return poly * scale;
}

}  // namespace
