// The sparse linear kernels of one instruction set. CMake compiles this file once per set, with SPARSEWRIGHT_ISA as the
// suffix of the one function that leaves it.
#include <type_traits>

#include "problem.hpp"
#include "row_lane.hpp"
#include "simd.hpp"
#include "single_token.hpp"
#include "token_lane.hpp"

#define SPARSEWRIGHT_JOIN_(a, b) a##b
#define SPARSEWRIGHT_JOIN(a, b) SPARSEWRIGHT_JOIN_(a, b)

namespace {

using sparsewright::Kernel;
using sparsewright::ValueType;

// Threads share out whole tiles of tokens, or row groups where tokens are few. Neither changes any result.
template <int G, class Value> void run_part(void *context, int part) {
    const LinearProblem &p = *static_cast<const LinearProblem *>(context);
    const bool by_tokens = p.tokens >= 64 && p.kernel != Kernel::single_token;
    const std::int64_t unit = p.kernel == Kernel::token_lane ? lanes : 1;
    const std::int64_t units = divide_up(p.tokens, unit);
    const Range tokens = by_tokens ? share(units, p.threads, part) : Range{0, units};
    const Range groups = by_tokens ? Range{0, p.groups} : share(p.groups, p.threads, part);
    if (tokens.begin == tokens.end || groups.begin == groups.end) return;
    switch (p.kernel) {
        case Kernel::token_lane: TokenLane<G, Value>::run(p, tokens, groups); break;
        case Kernel::row_lane:
            if constexpr (G >= 4) RowLane<G, Value>::run(p, tokens, groups);
            break;
        case Kernel::single_token: SingleToken<G, Value>::run(p, groups); break;
        default: break;  // the gradients have gone to backward.cpp, strips to strips.cpp
    }
}

template <int G> void run(const LinearProblem &p) {
    const auto body = p.value_type == ValueType::float16 ? run_part<G, Half>
                      : p.value_type == ValueType::int8  ? run_part<G, Byte>
                                                         : run_part<G, float>;
    sparsewright::parallel(p.threads, body, const_cast<LinearProblem *>(&p));
}

}  // namespace

extern "C" void SPARSEWRIGHT_JOIN(sparsewright_backward_, SPARSEWRIGHT_ISA)(const LinearProblem &p);
extern "C" void SPARSEWRIGHT_JOIN(sparsewright_strips_, SPARSEWRIGHT_ISA)(const LinearProblem &p);

extern "C" void SPARSEWRIGHT_JOIN(sparsewright_sparse_linear_, SPARSEWRIGHT_ISA)(const LinearProblem &p) {
    if (p.kernel >= Kernel::input_grad_by_rows) return SPARSEWRIGHT_JOIN(sparsewright_backward_, SPARSEWRIGHT_ISA)(p);
    if (p.kernel >= Kernel::strip_lane) return SPARSEWRIGHT_JOIN(sparsewright_strips_, SPARSEWRIGHT_ISA)(p);
    switch (p.group) {
        case 1: run<1>(p); break;
        case 2: run<2>(p); break;
        case 4: run<4>(p); break;
        case 8: run<8>(p); break;
        case 16: run<16>(p); break;
    }
}
