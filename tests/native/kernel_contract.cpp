// A program without Python and torch that holds the kernels of one instruction set to their contract: random problems in
// buffers of exactly the right size, results against sums in double precision. Meant for -fsanitize=address,undefined
// and for processors that are only emulated. Exit code 0: nothing was wrong.
//
// kernel_contract --sets          names of the instruction sets that run here, best first
// kernel_contract ROUNDS [SEED]   that many problems for every kernel that is linked in
#include <chrono>

#include "contract.hpp"

#include "../../src/sparsewright/_native/instruction_sets.hpp"

int main(int count, char **words) {
    using namespace contract;
    if (count > 1 && !std::strcmp(words[1], "--sets")) {
#define CONTRACT_PRINT(name, runs, floats, ints) \
    if (runs) std::printf("%s\n", #name);
        using namespace sparsewright;
        SPARSEWRIGHT_SETS(CONTRACT_PRINT)
        return 0;
    }
    const long rounds = count > 1 ? std::atol(words[1]) : 100;
    const std::uint64_t seed = count > 2 ? std::strtoull(words[2], nullptr, 10) : 1;
    Tally all;
    for (Check *check = Check::first; check; check = check->next) {
        Tally tally;
        const auto start = std::chrono::steady_clock::now();
        for (long i = 0; i < rounds; ++i) {
            Random random(seed * 1000003 + static_cast<std::uint64_t>(i));
            check->run(random, tally);
        }
        const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
        std::printf("%s: %ld calls, %ld failures, %.1f s\n", check->name, tally.calls, tally.failures, passed.count());
        all.calls += tally.calls;
        all.failures += tally.failures;
    }
    if (!all.calls) std::printf("No kernel is linked in.\n");
    return all.failures || !all.calls ? 1 : 0;
}
