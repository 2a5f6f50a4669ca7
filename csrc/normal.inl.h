// The normal distribution's random numbers (generated.h): what they are, and the same for a register of them. Included
// once per CPU target, inside that target's namespace and region, after a lanes/*.h.
//
// The number of n, of 24 bits, is the inverse of the distribution function at (n + ½)/2^24, by a polynomial; the
// polynomial is the definition. Let t be the distance of (n + ½)/2^24 to the nearer end, 0 or 1, and m·2^e = t with m
// in [1, 2). Then |x| is a polynomial of degree 6 in d = 2 − m, every operation rounded to float32 by itself, in the
// order below. There is one for each of the 24 octaves that t may lie in. They minimise the largest error (of the
// uppermost octave the error over d^0.4, with 0 at d = 0); that is 2^-20.04, and 2^-15.3 of x where x is near 0. The
// same in NumPy: python/sdsurgery/definitions/draws.py.

constexpr size_t kOctaves = 24, kFactors = 7;
constexpr float kNormal[kFactors][kOctaves] = {
    // from d^6 down to 1, of each the octaves from the lowest on
    {0x1.897d1ep-9f, 0x1.913b26p-9f, 0x1.997024p-9f, 0x1.a22844p-9f, 0x1.ab7182p-9f, 0x1.b55bfcp-9f,
     0x1.bffa62p-9f, 0x1.cb6284p-9f, 0x1.d7aep-9f,   0x1.e4fb24p-9f, 0x1.f36e0ep-9f, 0x1.019912p-8f,
     0x1.0a3e04p-8f, 0x1.13c614p-8f, 0x1.1e5916p-8f, 0x1.2a28d8p-8f, 0x1.377452p-8f, 0x1.468c08p-8f,
     0x1.57d806p-8f, 0x1.6bdfe8p-8f, 0x1.835506p-8f, 0x1.9f1da6p-8f, 0x1.c04cacp-8f, 0x1.9e175cp-8f},
    {-0x1.f7bc0ep-9f, -0x1.00beb2p-8f, -0x1.05e912p-8f, -0x1.0b648ep-8f, -0x1.1139a6p-8f, -0x1.17721ap-8f,
     -0x1.1e1938p-8f, -0x1.253c1ep-8f, -0x1.2cea32p-8f, -0x1.35358ep-8f, -0x1.3e33bap-8f, -0x1.47fe76p-8f,
     -0x1.52b4d6p-8f, -0x1.5e7cb6p-8f, -0x1.6b84a8p-8f, -0x1.7a068ep-8f, -0x1.8a4b3p-8f,  -0x1.9caf18p-8f,
     -0x1.b1a94ep-8f, -0x1.c9d49p-8f,  -0x1.e5fb9ep-8f, -0x1.039308p-7f, -0x1.16faaap-7f, -0x1.3a876p-8f},
    {0x1.b6cb0ap-8f, 0x1.bf8db4p-8f, 0x1.c8d91p-8f,  0x1.d2bb5cp-8f, 0x1.dd44f4p-8f, 0x1.e888c4p-8f,
     0x1.f49cccp-8f, 0x1.00cd64p-7f, 0x1.07d08ap-7f, 0x1.0f69d6p-7f, 0x1.17aed2p-7f, 0x1.20b97cp-7f,
     0x1.2aa97ap-7f, 0x1.35a5bap-7f, 0x1.41dea2p-7f, 0x1.4f9102p-7f, 0x1.5f0a2cp-7f, 0x1.70ad7p-7f,
     0x1.84fb98p-7f, 0x1.9c9c76p-7f, 0x1.b86926p-7f, 0x1.d9609ap-7f, 0x1.fe0872p-7f, 0x1.e858c8p-8f},
    {0x1.74227ap-8f, 0x1.7c1a5ap-8f, 0x1.84977cp-8f, 0x1.8da8bap-8f, 0x1.975f54p-8f, 0x1.a1cf6cp-8f,
     0x1.ad10bp-8f,  0x1.b93f2p-8f,  0x1.c67c24p-8f, 0x1.d4efeap-8f, 0x1.e4cb34p-8f, 0x1.f649bcp-8f,
     0x1.04dab8p-7f, 0x1.0fb568p-7f, 0x1.1bef78p-7f, 0x1.29d3c8p-7f, 0x1.39c32ep-7f, 0x1.4c3bdep-7f,
     0x1.61e31ap-7f, 0x1.7b92b2p-7f, 0x1.9a7f1p-7f,  0x1.c17482p-7f, 0x1.033acep-6f, 0x1.3b8cbcp-5f},
    {0x1.6edd28p-6f, 0x1.76cd7ep-6f, 0x1.7f4462p-6f, 0x1.885116p-6f, 0x1.920558p-6f, 0x1.9c75f2p-6f,
     0x1.a7bb66p-6f, 0x1.b3f2d2p-6f, 0x1.c13f12p-6f, 0x1.cfca42p-6f, 0x1.dfc7bcp-6f, 0x1.f176bcp-6f,
     0x1.0292fcp-5f, 0x1.0d9c38p-5f, 0x1.1a1602p-5f, 0x1.285106p-5f, 0x1.38b4fcp-5f, 0x1.4bc5acp-5f,
     0x1.622162p-5f, 0x1.7c5e96p-5f, 0x1.9a520ap-5f, 0x1.b7450ep-5f, 0x1.b0c9a4p-5f, 0x1.7634bp-12f},
    {0x1.763008p-4f, 0x1.7ee18cp-4f, 0x1.88326ep-4f, 0x1.92366ep-4f, 0x1.9d04d6p-4f, 0x1.a8b96ap-4f,
     0x1.b5757cp-4f, 0x1.c3618p-4f,  0x1.d2af0ep-4f, 0x1.e39bcp-4f,  0x1.f67528p-4f, 0x1.05cf44p-3f,
     0x1.11cc96p-3f, 0x1.1f8892p-3f, 0x1.2f788cp-3f, 0x1.42414ap-3f, 0x1.58d296p-3f, 0x1.7499p-3f,
     0x1.97de6ap-3f, 0x1.c69754p-3f, 0x1.04285cp-2f, 0x1.36dbeap-2f, 0x1.92c0fcp-2f, 0x1.40d738p-1f},
    {0x1.52dc7p2f,  0x1.4aa938p2f, 0x1.424418p2f, 0x1.39a966p2f, 0x1.30d504p2f,  0x1.27c24p2f,
     0x1.1e6bc8p2f, 0x1.14cb7ap2f, 0x1.0ada3ap2f, 0x1.008fbcp2f, 0x1.ebc464p1f,  0x1.d58bd2p1f,
     0x1.be597p1f,  0x1.a60a7p1f,  0x1.8c7352p1f, 0x1.715c7ep1f, 0x1.547d1ap1f,  0x1.357296p1f,
     0x1.13b22ep1f, 0x1.dcdc06p0f, 0x1.88bc26p0f, 0x1.267d54p0f, 0x1.5956c8p-1f, 0}};

// Of the upper octaves, in which all but one of 256 numbers lie: of each octave the low three bits of its exponent say
// where its factor is.
struct UpperOctaves {
    alignas(64) float of[kFactors][8] = {};
    constexpr UpperOctaves() {
        for (size_t k = 0; k < kFactors; ++k) {
            for (size_t octave = kOctaves - 8; octave < kOctaves; ++octave)
                of[k][(126 + octave) % 8] = kNormal[k][octave];
        }
    }
};
constexpr UpperOctaves kUpper;
constexpr float kMiddle = 0x1p23f - 0.5f, kLeastUpper = 0x1p15f;

// factor(k): that of d^(6 − k). In this order fewer operations wait for each other than by Horner's rule.
template <class V, class Factor>
V polynomial(V d, Factor factor) {
    const V square = d * d;
    const V lower = (factor(3) * d + factor(4)) * square + (factor(5) * d + factor(6));
    return (factor(0) * square + (factor(1) * d + factor(2))) * (square * square) + lower;
}

inline float normal_of(float n) {
    const float from_middle = n - kMiddle, t = 0x1p23f - std::fabs(from_middle);  // times 2^24: all of it is exact
    const uint32_t bits = bits_as<uint32_t>(t), octave = (bits >> 23) - 126;
    const float d = 2 - bits_as<float>((bits & 0x7fffff) | 0x3f800000);
    const float x = polynomial(d, [octave](size_t k) { return kNormal[k][octave]; });
    return std::copysign(x, from_middle);
}

// Of numbers of the upper octaves; of others anything. `lower`: a bit for each of these.
inline Lanes upper_normals(Lanes n, uint32_t& lower) {
    const Lanes from_middle = n - Lanes::all(kMiddle), t = Lanes::all(0x1p23f) - absolute(from_middle);
    const Octave octave = octave_of(t);
    const Lanes size =
        polynomial(Lanes::all(2) - mantissa(t), [octave](size_t k) { return chosen(kUpper.of[k], octave); });
    lower = bits_of(less(t, Lanes::all(kLeastUpper)));
    return copysign(size, from_middle);
}
