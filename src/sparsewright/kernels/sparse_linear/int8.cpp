// The int8 kernels of one instruction set. CMake compiles this file once per set, with SPARSEWRIGHT_ISA as the suffix of
// the one function that leaves it.
#include "int8_lane.hpp"

#define SPARSEWRIGHT_JOIN_(a, b) a##b
#define SPARSEWRIGHT_JOIN(a, b) SPARSEWRIGHT_JOIN_(a, b)

namespace {

// Threads share out tokens, or row groups where tokens are few. Neither changes any result.
void run_part(void *context, int part) {
    const Int8Problem &p = *static_cast<const Int8Problem *>(context);
    const bool by_tokens = p.tokens >= 64;
    const Range tokens = by_tokens ? share(p.tokens, p.threads, part) : Range{0, p.tokens};
    const Range groups = by_tokens ? Range{0, p.groups} : share(p.groups, p.threads, part);
    if (tokens.begin == tokens.end || groups.begin == groups.end) return;
    if (p.tokens != 1) {
        Int8Lane<most_bytes>::run(p, tokens.begin, tokens.end, groups);
    } else {
        switch (p.group) {
            case 2: single_int8_token_of_pairs(p, groups); break;
            case 4: single_int8_token<4>(p, groups); break;
            case 8: single_int8_token<8>(p, groups); break;
            case 16: single_int8_token<16>(p, groups); break;
        }
    }
}

}  // namespace

extern "C" void SPARSEWRIGHT_JOIN(sparsewright_int8_linear_, SPARSEWRIGHT_ISA)(const Int8Problem &p) {
    sparsewright::parallel(p.threads, run_part, const_cast<Int8Problem *>(&p));
}
