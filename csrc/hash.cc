#include "hash.h"

#include <algorithm>
#include <cstring>

#include "cpu.h"
#include "error.h"

#ifdef SDS_X86
#include <immintrin.h>
#define SDS_SHA_NI 1
#elif (defined(__aarch64__) || defined(_M_ARM64)) && \
    (defined(__ARM_FEATURE_SHA2) || !defined(__clang__) || __clang_major__ >= 16)
// (Older clangs declare the intrinsics only when the whole file is compiled for them.)
#include <arm_neon.h>
#define SDS_SHA_ARM 1
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define SDS_INLINE __forceinline
#else
#define SDS_INLINE inline __attribute__((always_inline))
#endif

namespace sds {

namespace {

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
alignas(64) constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

// ---- Portable: the standard's own formulas, the schedule kept as a ring of 16 words.

uint32_t rotated(uint32_t x, int n) { return x >> n | x << (32 - n); }

void compress_block(uint32_t* state, const uint8_t* data) {
    uint32_t w[16];
    for (size_t t = 0; t < 16; ++t) {
        const uint8_t* at = data + 4 * t;
        w[t] = uint32_t{at[0]} << 24 | uint32_t{at[1]} << 16 | uint32_t{at[2]} << 8 | at[3];
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (size_t t = 0; t < 64; ++t) {
        if (t >= 16) {
            const uint32_t early = w[(t + 1) & 15], late = w[(t + 14) & 15];
            w[t & 15] += (rotated(early, 7) ^ rotated(early, 18) ^ early >> 3) + w[(t + 9) & 15] +
                         (rotated(late, 17) ^ rotated(late, 19) ^ late >> 10);
        }
        const uint32_t one =
            h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + kRound[t] + w[t & 15];
        const uint32_t two = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + one;
        d = c, c = b, b = a, a = one + two;
    }
    const uint32_t after[8] = {a, b, c, d, e, f, g, h};
    for (size_t i = 0; i < 8; ++i) state[i] += after[i];
}

void compress_scalar(uint32_t* const* states, const uint8_t* const* data, size_t streams, size_t blocks) {
    for (size_t i = 0; i < streams; ++i) {
        for (size_t block = 0; block < blocks; ++block) compress_block(states[i], data[i] + 64 * block);
    }
}

// ---- The instructions of x86 (Gulley et al., "Intel SHA Extensions", 2013) and ARMv8. `Lanes` streams go through each
// group of four rounds together; w[i] is the ring of the last 16 words of stream i's schedule. Everything is unrolled,
// so that all of it stays in registers.

#ifdef SDS_SHA_NI

#if defined(_MSC_VER) && !defined(__clang__)
#define SDS_SHA
#else
#define SDS_SHA __attribute__((target("sha,sse4.1,ssse3")))
#endif

// The processor fetches ahead by itself only up to the end of a page, and the data lie in memory page by page: without
// this, a stream waits at the start of every one. (A prefetch past the end of the data does no harm.)
constexpr size_t kAhead = 2048;

template <size_t Lanes, int Group>
SDS_SHA SDS_INLINE void four_rounds(__m128i (&abef)[Lanes], __m128i (&cdgh)[Lanes], __m128i (&w)[Lanes][4]) {
    const __m128i constants = _mm_load_si128(reinterpret_cast<const __m128i*>(kRound + 4 * Group));
    __m128i sum[Lanes];
    for (size_t i = 0; i < Lanes; ++i) sum[i] = _mm_add_epi32(w[i][Group & 3], constants);
    for (size_t i = 0; i < Lanes; ++i) cdgh[i] = _mm_sha256rnds2_epu32(cdgh[i], abef[i], sum[i]);
    for (size_t i = 0; i < Lanes; ++i) {
        abef[i] = _mm_sha256rnds2_epu32(abef[i], cdgh[i], _mm_shuffle_epi32(sum[i], 0x0e));
    }
    if constexpr (Group < 12) {  // the words that this group's place in the ring holds 16 rounds later
        for (size_t i = 0; i < Lanes; ++i) {
            __m128i& first = w[i][Group & 3];
            const __m128i last = w[i][(Group + 3) & 3];
            const __m128i middle = _mm_alignr_epi8(last, w[i][(Group + 2) & 3], 4);
            first =
                _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(first, w[i][(Group + 1) & 3]), middle), last);
        }
    }
    if constexpr (Group < 15) four_rounds<Lanes, Group + 1>(abef, cdgh, w);
}

template <size_t Lanes>
SDS_SHA void interleaved(uint32_t* const* states, const uint8_t* const* data, size_t blocks) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i abef[Lanes], cdgh[Lanes];
    const uint8_t* at[Lanes];
    for (size_t i = 0; i < Lanes; ++i) {
        const __m128i* const from = reinterpret_cast<const __m128i*>(states[i]);
        const __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128(from), 0xb1);
        const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128(from + 1), 0x1b);
        abef[i] = _mm_alignr_epi8(badc, hgfe, 8);
        cdgh[i] = _mm_blend_epi16(hgfe, badc, 0xf0);
        at[i] = data[i];
    }
    for (; blocks > 0; --blocks) {
        __m128i abef_before[Lanes], cdgh_before[Lanes], w[Lanes][4];
        for (size_t i = 0; i < Lanes; ++i) {
            abef_before[i] = abef[i];
            cdgh_before[i] = cdgh[i];
            for (size_t k = 0; k < 4; ++k) {
                const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at[i] + 16 * k));
                w[i][k] = _mm_shuffle_epi8(words, big_endian);
            }
            _mm_prefetch(reinterpret_cast<const char*>(at[i]) + kAhead, _MM_HINT_T0);
            at[i] += 64;
        }
        four_rounds<Lanes, 0>(abef, cdgh, w);
        for (size_t i = 0; i < Lanes; ++i) {
            abef[i] = _mm_add_epi32(abef[i], abef_before[i]);
            cdgh[i] = _mm_add_epi32(cdgh[i], cdgh_before[i]);
        }
    }
    for (size_t i = 0; i < Lanes; ++i) {
        __m128i* const to = reinterpret_cast<__m128i*>(states[i]);
        const __m128i feba = _mm_shuffle_epi32(abef[i], 0x1b), dchg = _mm_shuffle_epi32(cdgh[i], 0xb1);
        _mm_storeu_si128(to, _mm_blend_epi16(feba, dchg, 0xf0));
        _mm_storeu_si128(to + 1, _mm_alignr_epi8(dchg, feba, 8));
    }
}

#endif

#ifdef SDS_SHA_ARM

#if defined(_MSC_VER) && !defined(__clang__)
#define SDS_SHA
#elif defined(__clang__)
#define SDS_SHA __attribute__((target("sha2")))
#else
#define SDS_SHA __attribute__((target("+crypto")))
#endif

template <size_t Lanes, int Group>
SDS_SHA SDS_INLINE void four_rounds(uint32x4_t (&abcd)[Lanes], uint32x4_t (&efgh)[Lanes], uint32x4_t (&w)[Lanes][4]) {
    const uint32x4_t constants = vld1q_u32(kRound + 4 * Group);
    uint32x4_t sum[Lanes], before[Lanes];
    for (size_t i = 0; i < Lanes; ++i) sum[i] = vaddq_u32(w[i][Group & 3], constants);
    for (size_t i = 0; i < Lanes; ++i) {
        before[i] = abcd[i];
        abcd[i] = vsha256hq_u32(abcd[i], efgh[i], sum[i]);
    }
    for (size_t i = 0; i < Lanes; ++i) efgh[i] = vsha256h2q_u32(efgh[i], before[i], sum[i]);
    if constexpr (Group < 12) {  // the words that this group's place in the ring holds 16 rounds later
        for (size_t i = 0; i < Lanes; ++i) {
            uint32x4_t& first = w[i][Group & 3];
            first = vsha256su1q_u32(vsha256su0q_u32(first, w[i][(Group + 1) & 3]), w[i][(Group + 2) & 3],
                                    w[i][(Group + 3) & 3]);
        }
    }
    if constexpr (Group < 15) four_rounds<Lanes, Group + 1>(abcd, efgh, w);
}

template <size_t Lanes>
SDS_SHA void interleaved(uint32_t* const* states, const uint8_t* const* data, size_t blocks) {
    uint32x4_t abcd[Lanes], efgh[Lanes];
    for (size_t i = 0; i < Lanes; ++i) {
        abcd[i] = vld1q_u32(states[i]);
        efgh[i] = vld1q_u32(states[i] + 4);
    }
    for (size_t block = 0; block < blocks; ++block) {
        uint32x4_t abcd_before[Lanes], efgh_before[Lanes], w[Lanes][4];
        for (size_t i = 0; i < Lanes; ++i) {
            abcd_before[i] = abcd[i];
            efgh_before[i] = efgh[i];
            for (size_t k = 0; k < 4; ++k) {
                w[i][k] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data[i] + 64 * block + 16 * k)));
            }
        }
        four_rounds<Lanes, 0>(abcd, efgh, w);
        for (size_t i = 0; i < Lanes; ++i) {
            abcd[i] = vaddq_u32(abcd[i], abcd_before[i]);
            efgh[i] = vaddq_u32(efgh[i], efgh_before[i]);
        }
    }
    for (size_t i = 0; i < Lanes; ++i) {
        vst1q_u32(states[i], abcd[i]);
        vst1q_u32(states[i] + 4, efgh[i]);
    }
}

#endif

#if defined(SDS_SHA_NI) || defined(SDS_SHA_ARM)
void compress_by_instructions(uint32_t* const* states, const uint8_t* const* data, size_t streams, size_t blocks) {
    static_assert(HashTarget::kMost == 3, "one case for each");
    if (streams == 1) interleaved<1>(states, data, blocks);
    if (streams == 2) interleaved<2>(states, data, blocks);
    if (streams == 3) interleaved<3>(states, data, blocks);
}
#endif

bool always() { return true; }

}  // namespace

const std::vector<HashTarget>& hash_targets() {
    static const std::vector<HashTarget> all = {
#ifdef SDS_SHA_NI
        {"sha-ni", cpu::has_sha, compress_by_instructions},
#endif
#ifdef SDS_SHA_ARM
        {"armv8", cpu::has_sha, compress_by_instructions},
#endif
        {"scalar", always, compress_scalar},
    };
    return all;
}

const HashTarget& hash_target_named(const std::string& name) {
    for (const HashTarget& target : hash_targets()) {
        if ((name.empty() || name == target.name) && target.runs_here()) return target;
    }
    throw Error(Code::invalid, "SHA-256 cannot be computed by '" + name + "' here");
}

void Sha256::update(const HashTarget& target, Piece* pieces, size_t count) {
    Piece* const end = pieces + count;
    const auto take = [](Piece& piece, size_t bytes) {
        piece.stream->bytes_ += bytes;
        piece.data += bytes;
        piece.bytes -= bytes;
    };
    for (Piece* at = pieces; at != end; ++at) {  // what is left of a block that was begun
        Piece& piece = *at;
        Sha256& stream = *piece.stream;
        const size_t filled = stream.bytes_ % 64;
        if (filled == 0 || piece.bytes == 0) continue;
        const size_t bytes = std::min(piece.bytes, 64 - filled);
        std::memcpy(stream.rest_.data() + filled, piece.data, bytes);
        take(piece, bytes);
        if (filled + bytes < 64) continue;
        uint32_t* const state = stream.state_.data();
        const uint8_t* const block = stream.rest_.data();
        target.compress(&state, &block, 1, 1);
    }
    // Whole blocks: those streams that have the most left go together.
    for (;;) {
        std::sort(pieces, end, [](const Piece& a, const Piece& b) { return a.bytes > b.bytes; });
        uint32_t* states[HashTarget::kMost];
        const uint8_t* data[HashTarget::kMost];
        size_t streams = 0;
        for (; streams < std::min(count, HashTarget::kMost) && pieces[streams].bytes >= 64; ++streams) {
            states[streams] = pieces[streams].stream->state_.data();
            data[streams] = pieces[streams].data;
        }
        if (streams == 0) break;
        const size_t blocks = pieces[streams - 1].bytes / 64;
        target.compress(states, data, streams, blocks);
        for (size_t i = 0; i < streams; ++i) take(pieces[i], 64 * blocks);
    }
    for (Piece* piece = pieces; piece != end; ++piece) {
        if (piece->bytes == 0) continue;
        std::memcpy(piece->stream->rest_.data(), piece->data, piece->bytes);
        take(*piece, piece->bytes);
    }
}

Sha256::Digest Sha256::digest(const HashTarget& target) const {
    Sha256 closed = *this;  // a one bit, zeros, and the length in bits, so that the whole is a multiple of 64 bytes
    std::array<uint8_t, 128> end = {0x80};
    const size_t filled = bytes_ % 64, bytes = (filled < 56 ? 64 : 128) - filled;
    for (size_t i = 0; i < 8; ++i) end[bytes - 1 - i] = static_cast<uint8_t>(8 * bytes_ >> (8 * i));
    closed.update(target, end.data(), bytes);
    Digest digest;
    for (size_t i = 0; i < 32; ++i) digest[i] = static_cast<uint8_t>(closed.state_[i / 4] >> (24 - 8 * (i % 4)));
    return digest;
}

std::string hex(const Sha256::Digest& digest) {
    static const char digits[] = "0123456789abcdef";
    std::string text;
    for (const uint8_t byte : digest) {
        text += digits[byte >> 4];
        text += digits[byte & 15];
    }
    return text;
}

}  // namespace sds
