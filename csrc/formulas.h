// The hot formulas, once each, templated over one float, a SIMD register or a device float. They are fast paths for
// programs that the Python methods trace to: a program is recognised by its shape (program.h), and the conformance
// tests hold both bit-equal. Operations are written in the order in which they are rounded; nothing is fused.
//
// Each is a sum of multiples of its inputs, perhaps over a constant: the fast kernels rely on a non-finite input giving
// a non-finite result. A formula without that property (a minimum, say) is left to the program's steps.
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

// Calls visit(Formula{}) for each; the only list of them.
template <class Visitor>
void for_each(Visitor& visit) {
    visit(Identity{});
    visit(WeightedSum2{});
    visit(WeightedSum3{});
    visit(AddDifference{});
    visit(WeightedSum2Over{});
}
constexpr int kFormulas = 5;

}  // namespace formulas
