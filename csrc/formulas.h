// The hot formulas, once each, templated over one float, a SIMD register or a device float. They are fast paths for
// programs that the Python methods trace to: a program is recognised by its shape (program.h), and the conformance
// tests hold both bit-equal. Operations are written in the order in which they are rounded; nothing is fused.
//
// Most are sums of multiples of their inputs, perhaps over a constant: there a non-finite input shows in the result. Of
// the others the CPU's kernels look at the inputs too; a GPU, whose memory sets the pace, evaluates them by their
// steps.
//
// Included (after dtypes.h) once in namespace sds and once in the namespace and target region of every CPU target: a
// function can only be inlined into one that is compiled for the same target. So no include guard.

namespace formulas {

// How many inputs and constants a formula has; of the inputs the last may be generated (generated.h): float32, whatever
// the others are.
template <int all, int numbers, int made = 0>
struct Takes {
    static constexpr int inputs = all, constants = numbers, generated = made;
};

struct Identity : Takes<1, 0> {
    template <class V>
    SDS_HD static V apply(const V* x, const V*) {
        return x[0];
    }
};

struct WeightedSum2 : Takes<2, 2> {  // (1 − α)·A + α·B, and two free weights
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return c[0] * x[0] + c[1] * x[1];
    }
};

struct WeightedSum3 : Takes<3, 3> {
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return c[0] * x[0] + c[1] * x[1] + c[2] * x[2];
    }
};

struct AddDifference : Takes<3, 1> {  // A + α·(B − C)
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return x[0] + c[0] * (x[1] - x[2]);
    }
};

struct WeightedSum2Over : Takes<2, 3> {  // (a·A + b·B) / c: spherical interpolation, once its angle is known
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return (c[0] * x[0] + c[1] * x[1]) / c[2];
    }
};

struct Towards : Takes<2, 1> {  // A + α·(B − A)
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return x[0] + c[0] * (x[1] - x[0]);
    }
};

// minimum, maximum, absolute, comparisons (1 or 0) and where are the operations of program.h.

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
    template <class V>
    SDS_HD static V apply(const V* x, const V*) {
        return x[0] + x[2] * (x[1] - x[0]);
    }
};

struct Slice : Takes<3, 2, 1> {  // B's elements whose place along an axis lies within bounds, the others A's
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return where(at_least(x[2], c[0]) * less(x[2], c[1]), x[1], x[0]);
    }
};

struct MeanOfChanges : Takes<3, 3> {  // A + the mean of B − A and C − A, each counted only above its threshold
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        const V b = x[1] - x[0], of_b = greater(absolute(b), c[0]);
        const V d = x[2] - x[0], of_d = greater(absolute(d), c[1]);
        const V count = maximum(of_b + of_d, c[2]);
        return x[0] + ((of_b * b) / count + (of_d * d) / count);
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
    visit(Slice{});
}
constexpr int kSums = 6, kFormulas = 12;

template <class Visitor>
void for_each(Visitor& visit) {
    for_each_sum(visit);
    for_each_other(visit);
}

}  // namespace formulas
