// The n:m:g kernels of one instruction set. CMake compiles this file once per set, with SPARSEWRIGHT_ISA as the suffix
// of the one function that leaves it.
#include "nmg_lane.hpp"
#include "nmg_token.hpp"

#define SPARSEWRIGHT_JOIN_(a, b) a##b
#define SPARSEWRIGHT_JOIN(a, b) SPARSEWRIGHT_JOIN_(a, b)

namespace {

// Threads share out whole vectors of tokens, or row blocks where tokens are few. Neither changes any result.
template <class Value> void run_part(void *context, int part) {
    const NmgProblem &p = *static_cast<const NmgProblem *>(context);
    const bool by_tokens = p.tokens >= 64;
    const std::int64_t vectors = divide_up(p.tokens, lanes);
    const Range tokens = by_tokens ? share(vectors, p.threads, part) : Range{0, vectors};
    const Range blocks = by_tokens ? Range{0, p.blocks} : share(p.blocks, p.threads, part);
    if (tokens.begin == tokens.end || blocks.begin == blocks.end) return;
    if (p.tokens == 1) {
        const auto call = [&]<int N>() { NmgToken<N % 5, Value>::run(p, blocks); };
        with_count<5>(smaller<std::int64_t>(p.n, 5), call);
    } else {
        const auto call = [&]<int J>() { NmgLane<J, Value>::run(p, tokens, blocks); };
        with_count<most_places>(smaller<std::int64_t>(p.n, most_places), call);
    }
}

}  // namespace

extern "C" void SPARSEWRIGHT_JOIN(sparsewright_nmg_linear_, SPARSEWRIGHT_ISA)(const NmgProblem &p) {
    sparsewright::parallel(p.threads, p.half_values ? run_part<Half> : run_part<float>, const_cast<NmgProblem *>(&p));
}
