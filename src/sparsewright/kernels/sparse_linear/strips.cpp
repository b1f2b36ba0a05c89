// The kernels for strips of one instruction set, forward and dx, a file of their own beside `cpu.cpp`, whose entry
// point calls this one. A problem of strips counts strips as its groups: see strip_lane.hpp.
#include "problem.hpp"
#include "strip_lane.hpp"

#define SPARSEWRIGHT_JOIN_(a, b) a##b
#define SPARSEWRIGHT_JOIN(a, b) SPARSEWRIGHT_JOIN_(a, b)

namespace {

using sparsewright::Kernel;
using sparsewright::ValueType;

// Threads share out whole vectors of tokens, or strips where tokens are few.
template <class Value> void run_part(void *context, int part) {
    const LinearProblem &p = *static_cast<const LinearProblem *>(context);
    const bool by_tokens = p.tokens >= 64;
    const std::int64_t vectors = divide_up(p.tokens, lanes);
    const Range tokens = by_tokens ? share(vectors, p.threads, part) : Range{0, vectors};
    const Range strips = by_tokens ? Range{0, p.groups} : share(p.groups, p.threads, part);
    if (tokens.begin == tokens.end || strips.begin == strips.end) return;
    if (p.kernel == Kernel::strip_lane) return StripLane<Value, false>::run(p, tokens, strips);
    StripLane<float, true>::run(p, tokens, strips);
}

}  // namespace

extern "C" void SPARSEWRIGHT_JOIN(sparsewright_strips_, SPARSEWRIGHT_ISA)(const LinearProblem &p) {
    const auto body = p.value_type == ValueType::float16 ? run_part<Half>
                      : p.value_type == ValueType::int8  ? run_part<Byte>
                                                         : run_part<float>;
    sparsewright::parallel(p.threads, body, const_cast<LinearProblem *>(&p));
}
