// Eight floats at a time: AVX2 with F16C. Included inside a namespace and a target region by target_avx2.cc.

struct Lanes {
    static constexpr int width = 8;
    __m256 v;
    static Lanes all(float x) { return {_mm256_set1_ps(x)}; }
    static Lanes read(const float* p) { return {_mm256_loadu_ps(p)}; }
    void write(float* p) const { _mm256_storeu_ps(p, v); }
};
inline Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm256_div_ps(a.v, b.v)}; }
// As those of program.h. The instructions give the second operand when one is a NaN; a NaN of the first must stay.
inline Lanes minimum(Lanes a, Lanes b) {
    return {_mm256_blendv_ps(_mm256_min_ps(a.v, b.v), a.v, _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q))};
}
inline Lanes maximum(Lanes a, Lanes b) {
    return {_mm256_blendv_ps(_mm256_max_ps(a.v, b.v), a.v, _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q))};
}
inline Lanes absolute(Lanes a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline Lanes negated(Lanes a) { return {_mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f))}; }
inline Lanes copysign(Lanes a, Lanes b) {
    return {_mm256_or_ps(absolute(a).v, _mm256_and_ps(b.v, _mm256_set1_ps(-0.0f)))};
}
inline Lanes floor(Lanes a) { return {_mm256_floor_ps(a.v)}; }
inline Lanes square_root(Lanes a) { return {_mm256_sqrt_ps(a.v)}; }
inline Lanes square_less(Lanes a, Lanes b) { return {_mm256_fmsub_ps(a.v, a.v, b.v)}; }  // a² − b, rounded once
// sum + a·b of a product that a float32 can hold: fused or not, the same bits.
inline Lanes plus_product(Lanes sum, Lanes a, Lanes b) { return {_mm256_fmadd_ps(a.v, b.v, sum.v)}; }
inline Lanes binade(Lanes a) { return {_mm256_and_ps(a.v, _mm256_set1_ps(bits_as<float>(0x7f800000)))}; }  // 2^⌊log2 a⌋
inline Lanes where(Lanes a, Lanes yes, Lanes no) {
    return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, _mm256_setzero_ps(), _CMP_NEQ_UQ))};
}

// What a comparison gives: 1 or 0 where a number is asked for.
struct Mask {
    __m256 m;  // all bits of a lane, or none
    operator Lanes() const { return {_mm256_and_ps(m, _mm256_set1_ps(1))}; }
};
inline Mask equal(Lanes a, Lanes b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
inline Mask not_equal(Lanes a, Lanes b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_NEQ_UQ)}; }
inline Mask less(Lanes a, Lanes b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask greater(Lanes a, Lanes b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
inline Mask at_least(Lanes a, Lanes b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)}; }
inline Mask operator*(Mask a, Mask b) { return {_mm256_and_ps(a.m, b.m)}; }
inline Lanes where(Mask a, Lanes yes, Lanes no) { return {_mm256_blendv_ps(no.v, yes.v, a.m)}; }
inline uint32_t bits_of(Mask a) { return static_cast<uint32_t>(_mm256_movemask_ps(a.m)); }  // one each

// key_of (select.h) of magnitudes.
inline void write_keys(Lanes x, uint32_t* to) {
    const __m256i bits = _mm256_castps_si256(x.v), is_nan = _mm256_cmpgt_epi32(bits, _mm256_set1_epi32(0x7f800000));
    const __m256i key = _mm256_or_si256(_mm256_or_si256(bits, _mm256_set1_epi32(INT32_MIN)), is_nan);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), key);
}
// Which of the keys have these upper bits: a bit each.
inline uint32_t having_upper(const uint32_t* keys, int above, uint32_t upper) {
    const __m256i key = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys));
    const __m256i shifted = _mm256_srl_epi32(key, _mm_cvtsi32_si128(above));
    const __m256i same = _mm256_cmpeq_epi32(shifted, _mm256_set1_epi32(static_cast<int>(upper)));
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(same)));
}

// Of the lanes of each mask the numbers, one after the other.
struct ChosenLanes {
    uint8_t of[256][8] = {};
    constexpr ChosenLanes() {
        for (size_t mask = 0; mask < 256; ++mask) {
            for (size_t lane = 0, n = 0; lane < 8; ++lane) {
                if (mask >> lane & 1) of[mask][n++] = static_cast<uint8_t>(lane);
            }
        }
    }
};
constexpr ChosenLanes kChosenLanes;

// write_chosen (keys.inl.h) without a branch.
inline size_t write_compressed(Lanes x, Mask chosen, uint32_t first, uint32_t* bits, uint32_t* indexes) {
    const uint32_t mask = bits_of(chosen);
    const auto numbers = reinterpret_cast<const __m128i*>(kChosenLanes.of[mask]);
    const __m256i lane = _mm256_cvtepu8_epi32(_mm_loadl_epi64(numbers));
    const __m256i index = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(first)), lane);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bits), _mm256_permutevar8x32_epi32(_mm256_castps_si256(x.v), lane));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(indexes), index);
    return static_cast<size_t>(_mm_popcnt_u32(mask));
}

struct Peak {
    __m256i v;
    static Peak none() { return {_mm256_setzero_si256()}; }
    void see(Lanes x) {
        v = _mm256_max_epu32(v, _mm256_and_si256(_mm256_castps_si256(x.v), _mm256_set1_epi32(0x7fffffff)));
    }
    uint32_t value() const {
        alignas(32) uint32_t each[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(each), v);
        uint32_t top = 0;
        for (uint32_t x : each) top = x > top ? x : top;
        return top;
    }
};

template <class Stored>
Lanes load(const uint8_t* p);
template <>
inline Lanes load<F32>(const uint8_t* p) {
    return {_mm256_loadu_ps(reinterpret_cast<const float*>(p))};
}
template <>
inline Lanes load<F16>(const uint8_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
template <>
inline Lanes load<BF16>(const uint8_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
template <>
inline Lanes load<E5M2>(const uint8_t* p) {
    const __m128i wide = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_cvtph_ps(_mm_slli_epi16(wide, 8))};
}
template <>
inline Lanes load<E4M3>(const uint8_t* p) {
    const __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const __m256i magnitude = _mm256_and_si256(code, _mm256_set1_epi32(0x7f));
    const __m256i sign = _mm256_slli_epi32(_mm256_xor_si256(code, magnitude), 24);
    const __m256 scaled =
        _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(magnitude, 20)), _mm256_set1_ps(0x1p120f));
    const __m256i nan =
        _mm256_and_si256(_mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f)), _mm256_set1_epi32(0x7fc00000));
    return {_mm256_castsi256_ps(_mm256_or_si256(_mm256_or_si256(_mm256_castps_si256(scaled), nan), sign))};
}

// Magnitude codes of a small float, as 32-bit lanes: dtypes.h's encode_magnitude on eight values.
template <int Exp, int Man>
inline __m256i encode_lanes(__m256i magnitude) {
    constexpr int bias = (1 << (Exp - 1)) - 1;
    constexpr int shift = 23 - Man;
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(magnitude, shift), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(_mm256_add_epi32(magnitude, _mm256_set1_epi32((1 << (shift - 1)) - 1)), odd);
    const __m256i normal = _mm256_sub_epi32(_mm256_srli_epi32(rounded, shift), _mm256_set1_epi32((127 - bias) << Man));
    if constexpr (bias == 127) {
        return normal;
    } else {
        const __m256i anchor = _mm256_set1_epi32((127 + 23 + 1 - bias - Man) << 23);
        const __m256 sum = _mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_castsi256_ps(anchor));
        const __m256i small = _mm256_sub_epi32(_mm256_castps_si256(sum), anchor);
        const __m256i is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32((127 - bias + 1) << 23), magnitude);
        return _mm256_blendv_epi8(normal, small, is_small);
    }
}

template <class Stored>
void store(uint8_t* p, Lanes x);
template <>
inline void store<F32>(uint8_t* p, Lanes x) {
    _mm256_storeu_ps(reinterpret_cast<float*>(p), x.v);
}
template <>
inline void store<F16>(uint8_t* p, Lanes x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
template <>
inline void store<BF16>(uint8_t* p, Lanes x) {
    const __m256i bits = _mm256_castps_si256(x.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
template <int Exp, int Man>
inline void store_byte(uint8_t* p, Lanes x) {
    const __m256i bits = _mm256_castps_si256(x.v);
    const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80));
    const __m256i code =
        _mm256_or_si256(encode_lanes<Exp, Man>(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff))), sign);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(code, code), 0x08);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_castsi256_si128(words));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
}
template <>
inline void store<E4M3>(uint8_t* p, Lanes x) {
    store_byte<4, 3>(p, x);
}
template <>
inline void store<E5M2>(uint8_t* p, Lanes x) {
    store_byte<5, 2>(p, x);
}

// Four float64: half of a reduction's lanes. load_doubles takes kDoublesLoaded elements at a time.
struct Doubles {
    static constexpr size_t width = 4;
    __m256d v;
    static Doubles zero() { return {_mm256_setzero_pd()}; }
    static Doubles all(double x) { return {_mm256_set1_pd(x)}; }
    void write(double* p) const { _mm256_storeu_pd(p, v); }
};
inline Doubles operator+(Doubles a, Doubles b) { return {_mm256_add_pd(a.v, b.v)}; }
inline Doubles operator-(Doubles a, Doubles b) { return {_mm256_sub_pd(a.v, b.v)}; }
inline Doubles operator*(Doubles a, Doubles b) { return {_mm256_mul_pd(a.v, b.v)}; }
inline Doubles widened(const double* p) { return {_mm256_loadu_pd(p)}; }
inline Doubles fused(Doubles sum, Doubles a, Doubles b) { return {_mm256_fmadd_pd(a.v, b.v, sum.v)}; }
inline Doubles larger(Doubles top, Doubles x) {  // max(top, |x|) of finite values
    return {_mm256_max_pd(top.v, _mm256_andnot_pd(_mm256_set1_pd(-0.0), x.v))};
}

inline void widen_lanes(Lanes x, Doubles* to) {
    to[0] = {_mm256_cvtps_pd(_mm256_castps256_ps128(x.v))};
    to[1] = {_mm256_cvtps_pd(_mm256_extractf128_ps(x.v, 1))};
}
inline Lanes narrowed(const Doubles* x) { return {_mm256_set_m128(_mm256_cvtpd_ps(x[1].v), _mm256_cvtpd_ps(x[0].v))}; }

// x = 2^k·m with m in [√½, √2), of ordinary positive numbers.
inline Lanes split(Lanes x, Lanes& m) {
    const __m256i root = _mm256_set1_epi32(0x3f3504f3), above = _mm256_sub_epi32(_mm256_castps_si256(x.v), root);
    const __m256i digits = _mm256_and_si256(above, _mm256_set1_epi32(0x7fffff));
    m = {_mm256_castsi256_ps(_mm256_add_epi32(digits, root))};
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(above, 23))};
}
// 2^k, k in the low bits of `shifted`.
inline Lanes power_of_two(Lanes shifted) {
    const __m256i k = _mm256_add_epi32(_mm256_castps_si256(shifted.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(k, 23))};
}
// x·2^k, k in the low bits of `shifted`.
inline Doubles scaled(Doubles x, Doubles shifted) {
    const __m256i k = _mm256_slli_epi64(_mm256_castpd_si256(shifted.v), 52);
    return {_mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(x.v), k))};
}

template <class Stored>
constexpr size_t kDoublesLoaded = 8;
template <>
constexpr size_t kDoublesLoaded<F64> = 4;
template <>
constexpr size_t kDoublesLoaded<F32> = 4;

template <class Stored>
inline void load_doubles(const uint8_t* p, Doubles* x) {
    widen_lanes(load<Stored>(p), x);
}
template <>
inline void load_doubles<F32>(const uint8_t* p, Doubles* x) {
    x[0] = {_mm256_cvtps_pd(_mm_loadu_ps(reinterpret_cast<const float*>(p)))};
}
template <>
inline void load_doubles<F64>(const uint8_t* p, Doubles* x) {
    x[0] = {_mm256_loadu_pd(reinterpret_cast<const double*>(p))};
}

// Four lanes of 64 bits, whose lower halves are the words that Philox multiplies (generated.inl.h).
struct Words {
    static constexpr size_t width = 4;
    __m256i v;
    static Words all(uint64_t x) { return {_mm256_set1_epi64x(static_cast<int64_t>(x))}; }
    static Words read(const uint64_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
};
inline Words operator+(Words a, Words b) { return {_mm256_add_epi64(a.v, b.v)}; }
inline Words operator*(Words a, Words b) { return {_mm256_mul_epu32(a.v, b.v)}; }  // of the lower halves
inline Words exclusive_or(Words a, Words b, Words c) { return {_mm256_xor_si256(_mm256_xor_si256(a.v, b.v), c.v)}; }
inline Words upper(Words a) { return {_mm256_shuffle_epi32(a.v, 0xb1)}; }
// Four words of each lane, one lane after the other in the order that generated.inl.h gives them.
inline void write_blocks(const Words (&w)[4], uint32_t* to) {
    const __m256i first = _mm256_blend_epi32(w[0].v, _mm256_slli_epi64(w[1].v, 32), 0xaa);
    const __m256i second = _mm256_blend_epi32(w[2].v, _mm256_slli_epi64(w[3].v, 32), 0xaa);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_unpacklo_epi64(first, second));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 8), _mm256_unpackhi_epi64(first, second));
}

// Elements of random numbers (normal.inl.h, generated.inl.h).
inline Lanes of_bytes(const uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
inline Lanes of_24_bits(const uint8_t* bytes, const uint8_t* halves) {  // byte·2^16 + half
    const __m256i upper = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
    const __m256i lower = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
    return {_mm256_cvtepi32_ps(_mm256_or_si256(_mm256_slli_epi32(upper, 16), lower))};
}
inline Lanes mantissa(Lanes x) {  // in [1, 2)
    return {_mm256_or_ps(_mm256_and_ps(x.v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffff))), _mm256_set1_ps(1))};
}
struct Octave {
    __m256i v;
};
inline Octave octave_of(Lanes x) { return {_mm256_srli_epi32(_mm256_castps_si256(x.v), 23)}; }
inline Lanes chosen(const float* eight, Octave at) { return {_mm256_permutevar8x32_ps(_mm256_load_ps(eight), at.v)}; }
