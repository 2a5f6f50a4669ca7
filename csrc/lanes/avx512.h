// Sixteen floats at a time: AVX-512 (F, BW, VL, DQ). Included inside a namespace and a target region by
// target_avx512.cc.

struct Lanes {
    static constexpr int width = 16;
    __m512 v;
    static Lanes all(float x) { return {_mm512_set1_ps(x)}; }
    static Lanes read(const float* p) { return {_mm512_loadu_ps(p)}; }
    void write(float* p) const { _mm512_storeu_ps(p, v); }
};
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
// As those of program.h. The instructions give the second operand when one is a NaN; a NaN of the first must stay.
inline Lanes minimum(Lanes a, Lanes b) {
    return {_mm512_mask_mov_ps(_mm512_min_ps(a.v, b.v), _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v)};
}
inline Lanes maximum(Lanes a, Lanes b) {
    return {_mm512_mask_mov_ps(_mm512_max_ps(a.v, b.v), _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), a.v)};
}
inline Lanes absolute(Lanes a) { return {_mm512_abs_ps(a.v)}; }
inline Lanes negated(Lanes a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
inline Lanes copysign(Lanes a, Lanes b) {
    return {_mm512_or_ps(_mm512_abs_ps(a.v), _mm512_and_ps(b.v, _mm512_set1_ps(-0.0f)))};
}
inline Lanes floor(Lanes a) { return {_mm512_floor_ps(a.v)}; }
inline Lanes square_root(Lanes a) { return {_mm512_sqrt_ps(a.v)}; }
inline Lanes square_less(Lanes a, Lanes b) { return {_mm512_fmsub_ps(a.v, a.v, b.v)}; }  // a² − b, rounded once
// sum + a·b of a product that a float32 can hold: fused or not, the same bits.
inline Lanes plus_product(Lanes sum, Lanes a, Lanes b) { return {_mm512_fmadd_ps(a.v, b.v, sum.v)}; }
inline Lanes binade(Lanes a) { return {_mm512_and_ps(a.v, _mm512_set1_ps(bits_as<float>(0x7f800000)))}; }  // 2^⌊log2 a⌋
inline Lanes where(Lanes a, Lanes yes, Lanes no) {
    return {_mm512_mask_mov_ps(no.v, _mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_NEQ_UQ), yes.v)};
}

// What a comparison gives: 1 or 0 where a number is asked for.
struct Mask {
    __mmask16 m;
    operator Lanes() const { return {_mm512_maskz_mov_ps(m, _mm512_set1_ps(1))}; }
};
inline Mask equal(Lanes a, Lanes b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
inline Mask not_equal(Lanes a, Lanes b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ)}; }
inline Mask less(Lanes a, Lanes b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask greater(Lanes a, Lanes b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
inline Mask at_least(Lanes a, Lanes b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
inline Mask operator*(Mask a, Mask b) { return {_kand_mask16(a.m, b.m)}; }
inline Lanes where(Mask a, Lanes yes, Lanes no) { return {_mm512_mask_mov_ps(no.v, a.m, yes.v)}; }
inline uint32_t bits_of(Mask a) { return a.m; }  // one each

// key_of (select.h) of magnitudes.
inline void write_keys(Lanes x, uint32_t* to) {
    const __m512i bits = _mm512_castps_si512(x.v), key = _mm512_or_si512(bits, _mm512_set1_epi32(INT32_MIN));
    const __mmask16 is_nan = _mm512_cmpgt_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
    _mm512_storeu_si512(to, _mm512_mask_mov_epi32(key, is_nan, _mm512_set1_epi32(-1)));
}
// Which of the keys have these upper bits: a bit each.
inline uint32_t having_upper(const uint32_t* keys, int above, uint32_t upper) {
    const __m512i shifted = _mm512_srl_epi32(_mm512_loadu_si512(keys), _mm_cvtsi32_si128(above));
    return _mm512_cmpeq_epi32_mask(shifted, _mm512_set1_epi32(static_cast<int>(upper)));
}
// The bits of the chosen lanes, and their numbers from `first` on, one after the other, in whole registers; how many
// they are.
inline size_t write_compressed(Lanes x, Mask chosen, uint32_t first, uint32_t* bits, uint32_t* indexes) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i index = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)), lane);
    _mm512_storeu_si512(bits, _mm512_maskz_compress_epi32(chosen.m, _mm512_castps_si512(x.v)));
    _mm512_storeu_si512(indexes, _mm512_maskz_compress_epi32(chosen.m, index));
    return static_cast<size_t>(_mm_popcnt_u32(chosen.m));
}

struct Peak {
    __m512i v;
    static Peak none() { return {_mm512_setzero_si512()}; }
    void see(Lanes x) {
        v = _mm512_max_epu32(v, _mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff)));
    }
    uint32_t value() const { return _mm512_reduce_max_epu32(v); }
};

template <class Stored>
Lanes load(const uint8_t* p);
template <>
inline Lanes load<F32>(const uint8_t* p) {
    return {_mm512_loadu_ps(p)};
}
template <>
inline Lanes load<F16>(const uint8_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
template <>
inline Lanes load<BF16>(const uint8_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
template <>
inline Lanes load<E5M2>(const uint8_t* p) {
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm512_cvtph_ps(_mm256_slli_epi16(wide, 8))};
}
template <>
inline Lanes load<E4M3>(const uint8_t* p) {
    const __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i magnitude = _mm512_and_si512(code, _mm512_set1_epi32(0x7f));
    const __m512i sign = _mm512_slli_epi32(_mm512_xor_si512(code, magnitude), 24);
    const __m512 scaled =
        _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(magnitude, 20)), _mm512_set1_ps(0x1p120f));
    const __mmask16 is_nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f));
    const __m512i bits = _mm512_mask_mov_epi32(_mm512_castps_si512(scaled), is_nan, _mm512_set1_epi32(0x7fc00000));
    return {_mm512_castsi512_ps(_mm512_or_si512(bits, sign))};
}

template <int Exp, int Man>
inline __m512i encode_lanes(__m512i magnitude) {
    constexpr int bias = (1 << (Exp - 1)) - 1;
    constexpr int shift = 23 - Man;
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, shift), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(_mm512_add_epi32(magnitude, _mm512_set1_epi32((1 << (shift - 1)) - 1)), odd);
    const __m512i normal = _mm512_sub_epi32(_mm512_srli_epi32(rounded, shift), _mm512_set1_epi32((127 - bias) << Man));
    const __m512i anchor = _mm512_set1_epi32((127 + 23 + 1 - bias - Man) << 23);
    const __m512 sum = _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_castsi512_ps(anchor));
    const __m512i small = _mm512_sub_epi32(_mm512_castps_si512(sum), anchor);
    const __mmask16 is_small = _mm512_cmplt_epu32_mask(magnitude, _mm512_set1_epi32((127 - bias + 1) << 23));
    return _mm512_mask_mov_epi32(normal, is_small, small);
}

template <class Stored>
void store(uint8_t* p, Lanes x);
template <>
inline void store<F32>(uint8_t* p, Lanes x) {
    _mm512_storeu_ps(p, x.v);
}
template <>
inline void store<F16>(uint8_t* p, Lanes x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
template <>
inline void store<BF16>(uint8_t* p, Lanes x) {
    // Not VCVTNEPS2BF16: that one flushes subnormals.
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
}
template <int Exp, int Man>
inline void store_byte(uint8_t* p, Lanes x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80));
    const __m512i code =
        _mm512_or_si512(encode_lanes<Exp, Man>(_mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff))), sign);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(code));
}
template <>
inline void store<E4M3>(uint8_t* p, Lanes x) {
    store_byte<4, 3>(p, x);
}
template <>
inline void store<E5M2>(uint8_t* p, Lanes x) {
    store_byte<5, 2>(p, x);
}

// Eight float64: a reduction's lanes. load_doubles takes kDoublesLoaded elements at a time.
struct Doubles {
    static constexpr size_t width = 8;
    __m512d v;
    static Doubles zero() { return {_mm512_setzero_pd()}; }
    static Doubles all(double x) { return {_mm512_set1_pd(x)}; }
    void write(double* p) const { _mm512_storeu_pd(p, v); }
};
inline Doubles operator+(Doubles a, Doubles b) { return {_mm512_add_pd(a.v, b.v)}; }
inline Doubles operator-(Doubles a, Doubles b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline Doubles operator*(Doubles a, Doubles b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline Doubles widened(const double* p) { return {_mm512_loadu_pd(p)}; }
inline Doubles fused(Doubles sum, Doubles a, Doubles b) { return {_mm512_fmadd_pd(a.v, b.v, sum.v)}; }
inline Doubles larger(Doubles top, Doubles x) {  // max(top, |x|) of finite values
    return {_mm512_max_pd(top.v, _mm512_abs_pd(x.v))};
}

inline void widen_lanes(Lanes x, Doubles* to) {
    to[0] = {_mm512_cvtps_pd(_mm512_castps512_ps256(x.v))};
    to[1] = {_mm512_cvtps_pd(_mm512_extractf32x8_ps(x.v, 1))};
}
inline Lanes narrowed(const Doubles* x) {
    const __m512 first = _mm512_castps256_ps512(_mm512_cvtpd_ps(x[0].v));
    return {_mm512_insertf32x8(first, _mm512_cvtpd_ps(x[1].v), 1)};
}

// x = 2^k·m with m in [√½, √2), of ordinary positive numbers.
inline Lanes split(Lanes x, Lanes& m) {
    const __m512i root = _mm512_set1_epi32(0x3f3504f3), above = _mm512_sub_epi32(_mm512_castps_si512(x.v), root);
    const __m512i digits = _mm512_and_si512(above, _mm512_set1_epi32(0x7fffff));
    m = {_mm512_castsi512_ps(_mm512_add_epi32(digits, root))};
    return {_mm512_cvtepi32_ps(_mm512_srai_epi32(above, 23))};
}
// 2^k, k in the low bits of `shifted`.
inline Lanes power_of_two(Lanes shifted) {
    const __m512i k = _mm512_add_epi32(_mm512_castps_si512(shifted.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(k, 23))};
}
// x·2^k, k in the low bits of `shifted`.
inline Doubles scaled(Doubles x, Doubles shifted) {
    const __m512i k = _mm512_slli_epi64(_mm512_castpd_si512(shifted.v), 52);
    return {_mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(x.v), k))};
}

template <class Stored>
constexpr size_t kDoublesLoaded = 16;
template <>
constexpr size_t kDoublesLoaded<F64> = 8;

template <class Stored>
inline void load_doubles(const uint8_t* p, Doubles* x) {
    widen_lanes(load<Stored>(p), x);
}
template <>
inline void load_doubles<F64>(const uint8_t* p, Doubles* x) {
    x[0] = {_mm512_loadu_pd(p)};
}

// Eight lanes of 64 bits, whose lower halves are the words that Philox multiplies (generated.inl.h).
struct Words {
    static constexpr size_t width = 8;
    __m512i v;
    static Words all(uint64_t x) { return {_mm512_set1_epi64(static_cast<int64_t>(x))}; }
    static Words read(const uint64_t* p) { return {_mm512_loadu_si512(p)}; }
};
inline Words operator+(Words a, Words b) { return {_mm512_add_epi64(a.v, b.v)}; }
inline Words operator*(Words a, Words b) { return {_mm512_mul_epu32(a.v, b.v)}; }  // of the lower halves
inline Words exclusive_or(Words a, Words b, Words c) { return {_mm512_ternarylogic_epi64(a.v, b.v, c.v, 0x96)}; }
inline Words upper(Words a) {
    return {_mm512_shuffle_epi32(a.v, _MM_PERM_CDAB)};
}  // of a shift there is one in a cycle
// Four words of each lane, one lane after the other in the order that generated.inl.h gives them.
inline void write_blocks(const Words (&w)[4], uint32_t* to) {
    constexpr __mmask16 odd = 0xaaaa;
    const __m512i first = _mm512_mask_blend_epi32(odd, w[0].v, _mm512_slli_epi64(w[1].v, 32));
    const __m512i second = _mm512_mask_blend_epi32(odd, w[2].v, _mm512_slli_epi64(w[3].v, 32));
    _mm512_storeu_si512(to, _mm512_unpacklo_epi64(first, second));
    _mm512_storeu_si512(to + 16, _mm512_unpackhi_epi64(first, second));
}

// Elements of random numbers (normal.inl.h, generated.inl.h).
inline Lanes of_bytes(const uint8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline Lanes of_24_bits(const uint8_t* bytes, const uint8_t* halves) {  // byte·2^16 + half
    const __m512i upper = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    const __m512i lower = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
    return {_mm512_cvtepi32_ps(_mm512_or_si512(_mm512_slli_epi32(upper, 16), lower))};
}
inline Lanes mantissa(Lanes x) {  // in [1, 2)
    return {_mm512_or_ps(_mm512_and_ps(x.v, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffff))), _mm512_set1_ps(1))};
}
struct Octave {
    __m512i v;
};
inline Octave octave_of(Lanes x) { return {_mm512_srli_epi32(_mm512_castps_si512(x.v), 23)}; }
inline Lanes chosen(const float* eight, Octave at) {  // the eight twice: the instruction takes four bits of an index
    return {_mm512_permutexvar_ps(at.v, _mm512_broadcast_f32x8(_mm256_load_ps(eight)))};
}
