#include "crc32.h"

#include <array>
#include <cstring>

#include "cpu.h"

#ifdef SDS_X86
#include <immintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#define SDS_ARM_CRC 1
#include <arm_acle.h>
#endif

namespace sds {

namespace {

constexpr uint32_t kPolynomial = 0xEDB88320;  // reflected: bit 31 is x⁰

struct Tables {
    // [0]: the state after one more byte; [k]: after k more bytes of zero.
    std::array<std::array<uint32_t, 256>, 16> bytes{};
    std::array<uint32_t, 32> powers{};  // x to the 2^k

    Tables() {
        for (uint32_t i = 0; i < 256; ++i) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? kPolynomial : 0);
            bytes[0][i] = value;
        }
        for (size_t k = 1; k < 16; ++k) {
            for (size_t i = 0; i < 256; ++i) bytes[k][i] = (bytes[k - 1][i] >> 8) ^ bytes[0][bytes[k - 1][i] & 255];
        }
        powers[0] = 1u << 30;
        for (size_t k = 1; k < 32; ++k) powers[k] = multiply(powers[k - 1], powers[k - 1]);
    }

    // a · b modulo the polynomial.
    static uint32_t multiply(uint32_t a, uint32_t b) {
        uint32_t product = 0;
        for (int bit = 31; bit >= 0; --bit) {
            if (a >> bit & 1) product ^= b;
            b = (b >> 1) ^ (b & 1 ? kPolynomial : 0);
        }
        return product;
    }
};

const Tables& tables() {
    static const Tables made;
    return made;
}

// All of these take and give the bare state, without zlib's inversions. 16 bytes at a time ("slicing", Kounavis and
// Berry 2005).
uint32_t by_tables(uint32_t state, const uint8_t* data, size_t bytes) {
    const auto& table = tables().bytes;
    for (; bytes >= 16; bytes -= 16, data += 16) {
        uint32_t words[4];
        std::memcpy(words, data, 16);
        words[0] ^= state;
        state = 0;
        for (size_t w = 0; w < 4; ++w) {
            for (size_t b = 0; b < 4; ++b) state ^= table[15 - 4 * w - b][words[w] >> (8 * b) & 255];
        }
    }
    for (; bytes > 0; --bytes, ++data) state = (state >> 8) ^ table[0][(state ^ *data) & 255];
    return state;
}

#ifdef SDS_X86

#if defined(_MSC_VER) && !defined(__clang__)  // takes any intrinsic anywhere
#define SDS_FOLDING
#define SDS_WIDE_FOLDING
#else
#define SDS_FOLDING __attribute__((target("pclmul,sse4.1")))
#define SDS_WIDE_FOLDING __attribute__((target("avx2,vpclmulqdq,pclmul,sse4.1")))
#endif

SDS_FOLDING inline __m128i load_16(const uint8_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

SDS_FOLDING inline __m128i fold(__m128i value, __m128i by, __m128i next) {
    return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(value, by, 0x00), next),
                         _mm_clmulepi64_si128(value, by, 0x11));
}

// Four registers of 16 bytes are folded over the next 64 by carry-less multiplication with powers of x modulo the
// polynomial, then into one; what is left is a message of 16 bytes with the same remainder. (Gopal et al., "Fast CRC
// computation for generic polynomials using PCLMULQDQ instruction", Intel 2009. To fold over n bits: x^(n+32) and
// x^(n−32), reflected and shifted by one.)
SDS_FOLDING uint32_t by_folding(uint32_t state, const uint8_t* data, size_t bytes) {
    __m128i a = _mm_xor_si128(load_16(data), _mm_cvtsi32_si128(static_cast<int>(state)));
    __m128i b = load_16(data + 16), c = load_16(data + 32), d = load_16(data + 48);
    const __m128i over_64 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4);
    const __m128i over_16 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    size_t at = 64;
    for (; bytes - at >= 64; at += 64) {
        a = fold(a, over_64, load_16(data + at));
        b = fold(b, over_64, load_16(data + at + 16));
        c = fold(c, over_64, load_16(data + at + 32));
        d = fold(d, over_64, load_16(data + at + 48));
    }
    a = fold(fold(fold(a, over_16, b), over_16, c), over_16, d);
    for (; bytes - at >= 16; at += 16) a = fold(a, over_16, load_16(data + at));
    uint8_t rest[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rest), a);
    return by_tables(by_tables(0, rest, 16), data + at, bytes - at);
}

SDS_WIDE_FOLDING inline __m256i load_32(const uint8_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

SDS_WIDE_FOLDING inline __m256i fold(__m256i value, __m256i by, __m256i next) {
    return _mm256_xor_si256(_mm256_xor_si256(_mm256_clmulepi64_epi128(value, by, 0x00), next),
                            _mm256_clmulepi64_epi128(value, by, 0x11));
}

// The same in registers of 32 bytes.
SDS_WIDE_FOLDING uint32_t by_wide_folding(uint32_t state, const uint8_t* data, size_t bytes) {
    const __m256i first = _mm256_zextsi128_si256(_mm_cvtsi32_si128(static_cast<int>(state)));
    __m256i a = _mm256_xor_si256(load_32(data), first);
    __m256i b = load_32(data + 32), c = load_32(data + 64), d = load_32(data + 96);
    const __m256i over_128 = _mm256_broadcastsi128_si256(_mm_set_epi64x(0x14a7fe880, 0x1e88ef372));
    const __m256i over_32 = _mm256_broadcastsi128_si256(_mm_set_epi64x(0x15a546366, 0x0f1da05aa));
    size_t at = 128;
    for (; bytes - at >= 128; at += 128) {
        a = fold(a, over_128, load_32(data + at));
        b = fold(b, over_128, load_32(data + at + 32));
        c = fold(c, over_128, load_32(data + at + 64));
        d = fold(d, over_128, load_32(data + at + 96));
    }
    a = fold(fold(fold(a, over_32, b), over_32, c), over_32, d);
    for (; bytes - at >= 32; at += 32) a = fold(a, over_32, load_32(data + at));
    uint8_t rest[32];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rest), a);
    return by_tables(by_tables(0, rest, 32), data + at, bytes - at);
}

bool can_fold() {
    static const bool can = cpu::has_pclmul();
    return can;
}

bool can_fold_wide() {
    static const bool can = cpu::has_vpclmul();
    return can;
}

#endif

#ifdef SDS_ARM_CRC
uint32_t by_instruction(uint32_t state, const uint8_t* data, size_t bytes) {
    for (; bytes >= 8; bytes -= 8, data += 8) {
        uint64_t word;
        std::memcpy(&word, data, 8);
        state = __crc32d(state, word);
    }
    for (; bytes > 0; --bytes, ++data) state = __crc32b(state, *data);
    return state;
}
#endif

uint32_t advance(uint32_t state, const uint8_t* data, size_t bytes) {
#if defined(SDS_X86)
    if (bytes >= 256 && can_fold_wide()) return by_wide_folding(state, data, bytes);
    if (bytes >= 64 && can_fold()) return by_folding(state, data, bytes);
#elif defined(SDS_ARM_CRC)
    return by_instruction(state, data, bytes);
#endif
    return by_tables(state, data, bytes);
}

}  // namespace

uint32_t crc32(uint32_t crc, const uint8_t* data, size_t bytes) { return ~advance(~crc, data, bytes); }

uint32_t crc32_shift(uint32_t crc, uint64_t bytes) {
    uint32_t power = 1u << 31;  // x⁰
    for (size_t k = 3; bytes > 0; bytes >>= 1, ++k) {
        if (bytes & 1) power = Tables::multiply(tables().powers[k & 31], power);  // x^(2^32) is x
    }
    return Tables::multiply(power, crc);
}

}  // namespace sds
