// The kernels that other kernels call; each says what it does where it is defined.
#pragma once

#include "numbers.h"

// What becomes of the sums of a product: they are it; they are added to what is there, for n in 32; or they are gated,
// where sixteen columns of a gate and sixteen of what it lets through take turns.
enum class Into : int { STORED, ADDED, GATED };

#define BATON_KERNELS(SUFFIX, T)                                                                                      \
    extern "C" void norm_row_##SUFFIX(T* out, const T* x, const float* weight, int64_t width, float eps);             \
    extern "C" void place_##SUFFIX(T* qkv, T* kv, const T* cosines, const T* sines, const int64_t* slots,             \
                                   int64_t rows, int64_t heads, int64_t kv_heads, int64_t dim, int64_t turned,        \
                                   int64_t num_slots, int threads);                                                   \
    extern "C" void decode_attention_##SUFFIX(                                                                        \
        T* out, const T* query, const T* kv, const int32_t* blocks, const int64_t* tables, const int64_t* lengths,    \
        int64_t query_row, int64_t query_head, int64_t requests, int64_t kv_heads, int64_t group, int64_t dim,        \
        int64_t num_blocks, int64_t block_size, int64_t window, float scale, float softcap, int threads);             \
    extern "C" void quantized_linear_##SUFFIX(T* out, const T* x, const int8_t* w, const float* scale, const T* bias, \
                                              const float* norm, float eps, int64_t rows, int64_t n, int64_t k,       \
                                              Into into, int threads);

BATON_KERNELS(bfloat16, bfloat16)
BATON_KERNELS(float32, float)

extern "C" void linear_bfloat16(bfloat16* out, const bfloat16* x, const bfloat16* w, const bfloat16* bias,
                                const float* norm, float eps, int64_t rows, int64_t n, int64_t k, Into into,
                                int threads);
extern "C" void prompt_attention_bfloat16(bfloat16* out, const bfloat16* query, const bfloat16* kv, const int32_t* table,
                                          int64_t query_row, int64_t query_head, int64_t tokens, int64_t length,
                                          int64_t kv_heads, int64_t group, int64_t dim, int64_t num_blocks,
                                          int64_t block_size, int64_t window, float scale, float softcap, int threads);
