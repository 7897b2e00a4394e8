// Tiles of AMX: sixteen rows of 64 bytes, which multiply 16 x 32 by 32 x 16 bfloat16 into float32.
#pragma once

#include "vectors.h"

#if defined(__AMX_BF16__) && defined(BATON_DOT_BF16)
#include <sys/syscall.h>
#include <unistd.h>
#define BATON_AMX 1

namespace {

constexpr int64_t TILE = 256;  // elements of 32 bits, a pair of bfloat16 or one float32

// Eight full tiles, whatever they hold.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
    TileShapes() {
        for (int i = 0; i < 8; i++) row_bytes[i] = 64, rows[i] = 16;
    }
};

inline bool may_use_tiles() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // arch_prctl(2): ARCH_REQ_XCOMP_PERM
    static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return granted;
}

// Sixteen rows of `size` elements as right-hand tiles [size / 32][16 pairs][16 rows], `step` elements from one to the
// next; a null row is zeros.
inline void pack_rows(const bfloat16* const* from, int64_t size, uint32_t* packed, int64_t step = TILE) {
    for (int64_t first = 0; first < size; first += 32, packed += step) {
        __m512 rows[16];
        for (int r = 0; r < 16; r++)
            rows[r] = from[r] ? _mm512_loadu_ps(reinterpret_cast<const float*>(from[r] + first)) : _mm512_setzero_ps();
        transpose(rows);
        for (int r = 0; r < 16; r++) _mm512_storeu_ps(reinterpret_cast<float*>(packed) + 16 * r, rows[r]);
    }
}

// Thirty-two rows of `size` elements as right-hand tiles [size / 16][16 pairs of rows][16 elements].
inline void pack_pairs(const bfloat16* const* from, int64_t size, uint32_t* packed) {
    const auto widened = [](const bfloat16* row) {
        return row ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)))
                   : _mm512_setzero_si512();
    };
    for (int64_t first = 0; first < size; first += 16, packed += TILE)
        for (int i = 0; i < 16; i++) {
            const bfloat16 *low = from[2 * i], *high = from[2 * i + 1];
            const __m512i pair = _mm512_or_si512(widened(low ? low + first : nullptr),
                                                 _mm512_slli_epi32(widened(high ? high + first : nullptr), 16));
            _mm512_storeu_si512(packed + 16 * i, pair);
        }
}

// The numbers of tiles are parts of instructions, so this cannot be a function.
#define BATON_MULTIPLY_TILES(P, sums, w, x) \
    if constexpr (P::IS_WHOLE)              \
        _tile_dpbssd(sums, w, x);           \
    else                                    \
        _tile_dpbf16ps(sums, w, x)

}  // namespace
#endif
