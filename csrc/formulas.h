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

struct Identity {
    static constexpr int inputs = 1, constants = 0;
    template <class V>
    SDS_HD static V apply(const V* x, const V*) {
        return x[0];
    }
};

struct WeightedSum2 {  // (1 − α)·A + α·B, and two free weights
    static constexpr int inputs = 2, constants = 2;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return c[0] * x[0] + c[1] * x[1];
    }
};

struct WeightedSum3 {
    static constexpr int inputs = 3, constants = 3;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return c[0] * x[0] + c[1] * x[1] + c[2] * x[2];
    }
};

struct AddDifference {  // A + α·(B − C)
    static constexpr int inputs = 3, constants = 1;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return x[0] + c[0] * (x[1] - x[2]);
    }
};

struct WeightedSum2Over {  // (a·A + b·B) / c: spherical interpolation, once its angle is known
    static constexpr int inputs = 2, constants = 3;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return (c[0] * x[0] + c[1] * x[1]) / c[2];
    }
};

struct Towards {  // A + α·(B − A)
    static constexpr int inputs = 2, constants = 1;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        return x[0] + c[0] * (x[1] - x[0]);
    }
};

// minimum, maximum, absolute, equal, greater (1 or 0) and where are the operations of program.h.

struct TrainDifference {  // A + α·(B − C)·|B − A| / (|B − C| + |B − A|)
    static constexpr int inputs = 3, constants = 2;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        const V change = x[1] - x[2], distance = absolute(x[1] - x[0]), both = absolute(change) + distance;
        const V share = where(greater(both, c[0]), distance / both, c[0]);
        return where(equal(x[1], x[2]), x[0], x[0] + c[1] * (share * change));
    }
};

struct Between {  // A, or the nearer of B and C where it does not lie between them
    static constexpr int inputs = 3, constants = 0;
    template <class V>
    SDS_HD static V apply(const V* x, const V*) {
        return minimum(maximum(x[0], minimum(x[2], x[1])), maximum(x[2], x[1]));
    }
};

struct ClampedAddDifference {  // A + α·(B − C), between A and B
    static constexpr int inputs = 3, constants = 1;
    template <class V>
    SDS_HD static V apply(const V* x, const V* c) {
        const V sum = x[0] + c[0] * (x[1] - x[2]);
        return minimum(maximum(sum, minimum(x[1], x[0])), maximum(x[1], x[0]));
    }
};

struct MeanOfChanges {  // A + the mean of those of B − A and C − A that are larger than a threshold each
    static constexpr int inputs = 3, constants = 3;
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
}
constexpr int kSums = 6, kFormulas = 10;

template <class Visitor>
void for_each(Visitor& visit) {
    for_each_sum(visit);
    for_each_other(visit);
}

}  // namespace formulas
