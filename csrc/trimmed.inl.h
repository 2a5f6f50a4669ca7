// The kernels of the formulas that keep the largest changes (Ties, Breadcrumbs of formulas.h), for stretches in which
// each `within` is one number: all equals of a threshold are kept, or none. One comparison then says what is kept, and
// a factor replaces two products; the bits are the same, those of zeros too. Included once per CPU target, inside that
// target's namespace and region, after formulas.h and a lanes/*.h.

// A formula's kernel by other means, if it has one: `constants_of` turns the formula's constants and the numbers that
// its generated inputs have all over a stretch into the kernel's own, or says that they don't allow it.
template <class Formula>
struct Trimmed {
    static constexpr bool exists = false;
};

namespace trimmed {

// What a magnitude must reach to be kept: the threshold itself or, without its equals, the next number.
inline float least_kept(float threshold, bool equals) {
    return equals ? threshold : std::nextafter(threshold, bits_as<float>(uint32_t{0x7f800000}));
}

}  // namespace trimmed

template <int n>
struct Trimmed<formulas::Ties<n>> : formulas::Takes<1 + n, 4 * n + 4> {
    static constexpr bool exists = true, shows = true;

    // Of each change the least that is kept, its weight, that times 0, and its vote; 0, 1, the least divisor and λ.
    static bool constants_of(const float* c, const float* within, float* own) {
        for (int k = 0; k < n; ++k) {
            const float weight = c[2 + 2 * k];
            own[4 * k] = trimmed::least_kept(c[k == 0 ? 0 : 1 + 2 * k], within[k] != 0);
            own[4 * k + 1] = weight;
            own[4 * k + 2] = weight * 0.0f;
            own[4 * k + 3] = c[2 + 2 * n + k];
        }
        const float one = c[1], zero = c[1 + 2 * n];
        own[4 * n] = zero;
        own[4 * n + 1] = one;
        own[4 * n + 2] = c[2 + 3 * n];
        own[4 * n + 3] = c[3 + 3 * n];
        return one == 1 && zero == 0;
    }

    static Lanes apply(const Lanes* x, const Lanes* c) {
        const Lanes zero = c[4 * n], one = c[4 * n + 1], least = c[4 * n + 2], lambda = c[4 * n + 3];
        Lanes part[n], sum, votes;
        for (int k = 0; k < n; ++k) {
            const Lanes change = x[1 + k] - x[0];
            part[k] = where(at_least(absolute(change), c[4 * k]), c[4 * k + 1], c[4 * k + 2]) * change;
            sum = k == 0 ? part[0] : sum + part[k];
        }
        const Lanes towards = copysign(one, sum);  // a sum of -0 has parts of -0 only, which agree with neither sign
        for (int k = 0; k < n; ++k) {
            const Lanes agrees = greater(part[k] * towards, zero);
            sum = k == 0 ? agrees * part[0] : plus_product(sum, agrees, part[k]);
            votes = k == 0 ? agrees * c[3] : plus_product(votes, agrees, c[4 * k + 3]);
        }
        return x[0] + lambda * (sum / where(less(absolute(votes), least), one, votes));
    }
};

template <int n>
struct Trimmed<formulas::Breadcrumbs<n>> : formulas::Takes<1 + n, 5 * n + 1> {
    static constexpr bool exists = true, shows = true;

    // Of each change the least that is kept and the least that is too large, its weight, that times 0 and times -1; λ.
    static bool constants_of(const float* c, const float* within, float* own) {
        for (int k = 0; k < n; ++k) {
            const float weight = c[3 + 3 * k];
            own[5 * k] = trimmed::least_kept(c[k == 0 ? 0 : 1 + 3 * k], within[2 * k] != 0);
            own[5 * k + 1] = trimmed::least_kept(c[2 + 3 * k], within[2 * k + 1] != 0);
            own[5 * k + 2] = weight;
            own[5 * k + 3] = weight * 0.0f;
            own[5 * k + 4] = -weight;
        }
        own[5 * n] = c[1 + 3 * n];
        return c[1] == 1;
    }

    static Lanes apply(const Lanes* x, const Lanes* c) {
        Lanes sum;
        for (int k = 0; k < n; ++k) {
            const Lanes *const own = c + 5 * k, change = x[1 + k] - x[0], size = absolute(change);
            const Mask inner = at_least(size, own[0]);
            const Lanes factor =
                where(at_least(size, own[1]), where(inner, own[3], own[4]), where(inner, own[2], own[3]));
            sum = k == 0 ? factor * change : sum + factor * change;
        }
        return x[0] + c[5 * n] * sum;
    }
};
