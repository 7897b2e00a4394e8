// The kernels as other kernels and Python call them; each says what it does where it is defined.
#pragma once

#include "numbers.h"

#define BATON_KERNELS(SUFFIX, T)                                                                                       \
    extern "C" void rms_norm_##SUFFIX(T* out, const T* x, const float* weight, int64_t rows, int64_t width, float eps, \
                                      int threads);                                                                    \
    extern "C" void add_##SUFFIX(T* sum, const T* x, int64_t count, int threads);                                      \
    extern "C" void silu_gate_##SUFFIX(T* out, const T* joined, int64_t rows, int64_t width, int threads);             \
    extern "C" void rotate_##SUFFIX(T* x, const T* cosines, const T* sines, int64_t rows, int64_t row_stride,          \
                                    int64_t heads, int64_t head_stride, int64_t dim, int threads);                     \
    extern "C" void store_##SUFFIX(T* kv, const T* key, const T* value, const int64_t* slots, int64_t tokens,          \
                                   int64_t heads, int64_t num_slots, int64_t dim, int64_t token_stride,                \
                                   int64_t head_stride, int threads);                                                  \
    extern "C" void decode_attention_##SUFFIX(                                                                         \
        T* out, const T* query, const T* kv, const int32_t* blocks, const int64_t* tables, const int64_t* lengths,     \
        int64_t query_row, int64_t query_head, int64_t requests, int64_t kv_heads, int64_t group, int64_t dim,         \
        int64_t num_blocks, int64_t block_size, int64_t window, float scale, float softcap, int threads);              \
    extern "C" void quantized_linear_##SUFFIX(T* out, const T* x, const int8_t* w, const float* scale, const T* bias,  \
                                              int64_t rows, int64_t n, int64_t k, int threads);

BATON_KERNELS(bfloat16, bfloat16)
BATON_KERNELS(float32, float)

extern "C" void linear_bfloat16(bfloat16* out, const bfloat16* x, const bfloat16* w, const bfloat16* bias, int64_t rows,
                                int64_t n, int64_t k, int threads);
