// The hot formulas, once each, templated over one float, a SIMD register or a device float. They are fast paths for
// programs that the Python methods trace to: a program is recognised by its shape (program.h), and the conformance
// tests hold both bit-equal. Operations are written in the order in which they are rounded; nothing is fused.
//
// Most are sums of multiples of their inputs, perhaps over a constant or by numbers that other inputs give: there a
// non-finite input shows in the result. Of the others the CPU's kernels look at the inputs too. A GPU, whose memory
// sets the pace, evaluates all but the sums by their steps.
//
// Included (after dtypes.h) once in namespace sds and once in the namespace and target region of every CPU target: a
// function can only be inlined into one that is compiled for the same target. So no include guard.

namespace formulas {

// How many inputs and constants a formula has; of the inputs the last ones may be generated (generated.h): float32,
// whatever the others are.
template <int all, int numbers, int made = 0>
struct Takes {
    static constexpr int inputs = all, constants = numbers, generated = made;
    static constexpr bool packed = false;  // in packs of registers (packs.inl.h), for its long chains of operations
    static constexpr bool shows = false;   // whether a NaN or an Inf of any input always shows in the result
};

struct Identity : Takes<1, 0> {
    static constexpr bool shows = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V*) {
        return x[0];
    }
};

struct WeightedSum2 : Takes<2, 2> {  // (1 − α)·A + α·B, and two free weights
    static constexpr bool shows = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return c[0] * x[0] + c[1] * x[1];
    }
};

struct WeightedSum3 : Takes<3, 3> {
    static constexpr bool shows = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return c[0] * x[0] + c[1] * x[1] + c[2] * x[2];
    }
};

struct AddDifference : Takes<3, 1> {  // A + α·(B − C)
    static constexpr bool shows = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return x[0] + c[0] * (x[1] - x[2]);
    }
};

struct WeightedSum2Over : Takes<2, 3> {  // (a·A + b·B) / c: spherical interpolation, once its angle is known
    static constexpr bool shows = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return (c[0] * x[0] + c[1] * x[1]) / c[2];
    }
};

struct Towards : Takes<2, 1> {  // A + α·(B − A)
    static constexpr bool shows = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return x[0] + c[0] * (x[1] - x[0]);
    }
};

// minimum, maximum, absolute, negated, floor, copysign, exp, log, pow, comparisons (1 or 0) and where are the
// operations of program.h.

struct TrainDifference : Takes<3, 2> {  // A + α·(B − C)·|B − A| / (|B − C| + |B − A|)
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        const V change = x[1] - x[2], distance = absolute(x[1] - x[0]), both = absolute(change) + distance;
        const V share = where(greater(both, c[0]), distance / both, c[0]);
        return where(equal(x[1], x[2]), x[0], x[0] + c[1] * (share * change));
    }
};

struct Between : Takes<3, 0> {  // A, or the nearer of B and C where it does not lie between them
    template <class V>
    SDS_HD static V apply(const V* x, const V*) {
        return minimum(maximum(x[0], minimum(x[2], x[1])), maximum(x[2], x[1]));
    }
};

struct ClampedAddDifference : Takes<3, 1> {  // A + α·(B − C), between A and B
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        const V sum = x[0] + c[0] * (x[1] - x[2]);
        return minimum(maximum(sum, minimum(x[1], x[0])), maximum(x[1], x[0]));
    }
};

struct TowardsEach : Takes<3, 0, 1> {  // A + α·(B − A), α a number of each row, column or channel
    static constexpr bool shows = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V*) {
        return x[0] + x[2] * (x[1] - x[0]);
    }
};

struct AddMultiple : Takes<2, 1, 1> {  // A + α·N, N a random number of each element
    static constexpr bool shows = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return x[0] + c[0] * x[1];
    }
};

struct LerpEach : Takes<3, 2, 1> {  // torch.lerp from B to A, α a number of each column or channel; A where it is a NaN
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        const V from_b = x[0] - x[1];
        const V mixed = where(less(absolute(x[2]), c[0]), x[1] + x[2] * from_b, x[0] - from_b * (c[1] - x[2]));
        return where(not_equal(x[2], x[2]), x[0], mixed);
    }
};

struct TowardsEachScaled : Takes<3, 2, 1> {  // A + α·(B − A) with another mean and deviation, α as in TowardsEach
    static constexpr bool shows = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return (x[0] + x[2] * (x[1] - x[0])) * c[0] + c[1];
    }
};

struct Slice : Takes<3, 2, 1> {  // B's elements whose place along an axis lies within bounds, the others A's
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return where(at_least(x[2], c[0]) * less(x[2], c[1]), x[1], x[0]);
    }
};

struct GateEach : Takes<4, 2, 2> {  // g·A + h·(a·A + b·B), g and h a number of each row, column or channel
    static constexpr bool shows = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return x[0] * x[2] + (c[0] * x[0] + c[1] * x[1]) * x[3];
    }
};

struct LargeChange : Takes<2, 4> {  // A + α·(B − A) where |B − A| reaches a threshold, else A
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        const V change = x[1] - x[0];
        return x[0] + c[3] * where(at_least(absolute(change), c[0]) * c[1], change, c[2]);
    }
};

// 1 for an element above the k-th largest, and for its equals where `within` says that they belong to the k largest;
// for a NaN too.
template <class V>
SDS_HD V among_largest(V size, V kth, V one, V within) {
    return where(greater(size, kth), one, where(equal(size, kth), within, not_a_number(size)));
}

// The formulas of any number of changes are those of n: of A and n others. Ties and Breadcrumbs are what programs are
// recognised by; their kernels are those of trimmed.inl.h.
template <int n>
struct Ties : Takes<1 + 2 * n, 3 * n + 4, n> {  // A + λ·Σxᵢ/Σwᵢ over the xᵢ = wᵢ·largest(Δᵢ) with the sign of their sum
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        const V one = c[1], zero = c[1 + 2 * n], least = c[2 + 3 * n], lambda = c[3 + 3 * n];
        V part[n], sum, weights;
        for (int k = 0; k < n; ++k) {
            const V change = x[1 + k] - x[0], kth = c[k == 0 ? 0 : 1 + 2 * k], weight = c[2 + 2 * k];
            part[k] = weight * (among_largest(absolute(change), kth, one, x[1 + n + k]) * change);
            sum = k == 0 ? part[0] : sum + part[k];
        }
        const auto positive = at_least(sum, zero);
        for (int k = 0; k < n; ++k) {
            const V agrees = where(positive, greater(part[k], zero), less(part[k], zero));
            const V counted = agrees * part[k], weight = c[2 + 2 * n + k] * agrees;
            sum = k == 0 ? counted : sum + counted;
            weights = k == 0 ? weight : weights + weight;
        }
        return x[0] + lambda * (sum / where(less(absolute(weights), least), one, weights));
    }
};

template <int n>
struct Breadcrumbs : Takes<1 + 3 * n, 3 * n + 2, 2 * n> {  // A + λ·Σwᵢ·Δᵢ over the largest Δᵢ but the very largest
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        const V one = c[1];
        V sum;
        for (int k = 0; k < n; ++k) {
            const V change = x[1 + k] - x[0], size = absolute(change);
            const V inner = among_largest(size, c[k == 0 ? 0 : 1 + 3 * k], one, x[1 + n + 2 * k]);
            const V outer = among_largest(size, c[2 + 3 * k], one, x[2 + n + 2 * k]);
            const V part = c[3 + 3 * k] * ((inner - outer) * change);
            sum = k == 0 ? part : sum + part;
        }
        return x[0] + c[1 + 3 * n] * sum;
    }
};

template <int n>
struct Dare : Takes<1 + 2 * n, 3 * n + 1, n> {  // A + λ·Σwᵢ·Δᵢ/q over the Δᵢ whose random numbers are below p
    static constexpr bool shows = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        V sum;
        for (int k = 0; k < n; ++k) {
            const V kept = (x[1 + k] - x[0]) * less(x[1 + n + k], c[3 * k]);
            const V part = c[3 * k + 2] * (kept / c[3 * k + 1]);
            sum = k == 0 ? part : sum + part;
        }
        return x[0] + c[3 * n] * sum;
    }
};

template <int n>
struct TowardsMean : Takes<1 + n, 3> {  // t·mean(B, C, …) + (1 − t)·A
    static constexpr bool shows = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        V sum = x[1];
        for (int k = 2; k <= n; ++k) sum = sum + x[k];
        return c[1] * (sum / c[0]) + (c[2] - c[1]) * x[0];
    }
};

struct MeanOfChanges : Takes<3, 3> {  // A + the mean of B − A and C − A, each counted only above its threshold
    static constexpr bool shows = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        const V b = x[1] - x[0], of_b = greater(absolute(b), c[0]);
        const V d = x[2] - x[0], of_d = greater(absolute(d), c[1]);
        const V count = maximum(of_b + of_d, c[2]);
        return x[0] + ((of_b * b) / count + (of_d * d) / count);
    }
};

struct MultiplyDifference : Takes<3, 4> {  // C + |A − C|^(1 − α)·|B − C|^α with the sign of (1 − β)·A + β·B − C
    static constexpr bool packed = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        const V size = pow(absolute(x[0] - x[2]), c[2]) * pow(absolute(x[1] - x[2]), c[3]);
        return x[2] + copysign(size, (c[0] * x[0] + c[1] * x[1]) - x[2]);
    }
};

struct GeometricSum : Takes<2, 6> {  // |A|^(1 − α)·|B|^α, times a factor where A, B or both are below 0
    static constexpr bool packed = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        const V size = pow(absolute(x[0]), c[0]) * pow(absolute(x[1]), c[1]);
        const auto below_a = less(x[0], c[2]), below_b = less(x[1], c[2]);
        return where(below_a, where(below_b, size * c[3], size * c[4]), where(below_b, size * c[5], size));
    }
};

// cos πt; c: ½, five factors of its series, 4 and 1.
template <class V>
SDS_HD V cosine_of_half_turns(V t, const V* c) {
    const V nearest = floor(t + c[0]), rest = t - nearest, half = nearest * c[0], square = rest * rest;
    const V sign = c[7] - c[6] * (half - floor(half));
    V series = c[1];
    for (int k = 2; k < 6; ++k) series = c[k] - square * series;
    return sign * (c[7] - square * series);
}

struct MultiplyQuotient : Takes<3, 10> {  // Re(A·(B/C)^e) with e of the logarithms of A/C and B/C, or A
    static constexpr bool packed = true;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        const auto opposite = not_equal(less(x[1], c[0]), less(x[2], c[0]));
        const V a = log(absolute(x[0] / x[2])), b = log(absolute(x[1] / x[2]));
        const V larger = maximum(absolute(a), absolute(b));
        const V power = c[1] * maximum(negated(a * b) / (larger * larger), c[0]);
        V found = x[0] * exp(power * b);
        found = where(opposite, found * cosine_of_half_turns(power, c + 2), found);
        return where(not_equal(found, found), x[0], found);
    }
};

// Calls visit(Formula{}) for each; the only lists of them.
template <class Visitor>
void for_each_sum(Visitor& visit) {
    visit(Identity{});
    visit(WeightedSum2{});
    visit(WeightedSum3{});
    visit(AddDifference{});
    visit(WeightedSum2Over{});
    visit(Towards{});
}
template <class Visitor>
void for_each_other(Visitor& visit) {
    visit(TrainDifference{});
    visit(Between{});
    visit(ClampedAddDifference{});
    visit(MeanOfChanges{});
    visit(TowardsEach{});
    visit(AddMultiple{});
    visit(LerpEach{});
    visit(TowardsEachScaled{});
    visit(Slice{});
    visit(GateEach{});
    visit(LargeChange{});
    visit(Ties<1>{});
    visit(Ties<2>{});
    visit(Ties<3>{});
    visit(Breadcrumbs<1>{});
    visit(Breadcrumbs<2>{});
    visit(Dare<1>{});
    visit(Dare<2>{});
    visit(Dare<3>{});
    visit(TowardsMean<2>{});
    visit(TowardsMean<3>{});
    visit(MultiplyDifference{});
    visit(GeometricSum{});
    visit(MultiplyQuotient{});
}
constexpr int kSums = 6, kFormulas = 30;

template <class Visitor>
void for_each(Visitor& visit) {
    for_each_sum(visit);
    for_each_other(visit);
}

}  // namespace formulas
