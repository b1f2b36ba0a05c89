// The backward kernels of one instruction set, a file of their own beside `cpu.cpp`, whose entry point calls this one.
#include "input_grad.hpp"
#include "problem.hpp"
#include "weight_grad.hpp"

#define SPARSEWRIGHT_JOIN_(a, b) a##b
#define SPARSEWRIGHT_JOIN(a, b) SPARSEWRIGHT_JOIN_(a, b)

namespace {

using sparsewright::Kernel;
using sparsewright::ValueType;

// Threads share out whole vectors of tokens, or what dx and dW are cut into where tokens are few or all needed at once.
template <int G, class Value> void run_part(void *context, int part) {
    const LinearProblem &p = *static_cast<const LinearProblem *>(context);
    if (p.kernel == Kernel::weight_grad) {
        const Range groups = share(p.groups, p.threads, part);
        if (groups.begin != groups.end) WeightGrad<G>::run(p, groups);
        return;
    }
    const bool by_tokens = p.tokens >= 64;
    const std::int64_t units = divide_up(p.tokens, lanes);
    const Range tokens = by_tokens ? share(units, p.threads, part) : Range{0, units};
    constexpr bool by_columns = G < 4;  // single rows and pairs; wider groups can wait in registers
    if (by_columns != (p.kernel == Kernel::input_grad_by_columns)) return;
    const std::int64_t cuts = by_columns ? p.out : p.blocks;
    const Range rest = by_tokens ? Range{0, cuts} : share(cuts, p.threads, part);
    if (tokens.begin == tokens.end || rest.begin == rest.end) return;
    if constexpr (by_columns) {
        InputGradByColumns<G, Value>::run(p, tokens, rest);
    } else {
        InputGradByRows<G, Value>::run(p, tokens, rest);
    }
}

template <int G> void run(const LinearProblem &p) {
    const auto body = p.value_type == ValueType::float16 ? run_part<G, Half>
                      : p.value_type == ValueType::int8  ? run_part<G, Byte>
                                                         : run_part<G, float>;
    sparsewright::parallel(p.threads, body, const_cast<LinearProblem *>(&p));
}

}  // namespace

extern "C" void SPARSEWRIGHT_JOIN(sparsewright_backward_, SPARSEWRIGHT_ISA)(const LinearProblem &p) {
    switch (p.group) {
        case 1: run<1>(p); break;
        case 2: run<2>(p); break;
        case 4: run<4>(p); break;
        case 8: run<8>(p); break;
        case 16: run<16>(p); break;
    }
}
