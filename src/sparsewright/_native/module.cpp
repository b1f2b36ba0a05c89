// The Python side of the native library. It sees torch only as addresses, so it builds without torch.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__unix__)
#include <unistd.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/sparse_linear/int8_problem.hpp"
#include "../kernels/sparse_linear/problem.hpp"
#include "peak.hpp"

namespace nb = nanobind;
using namespace sparsewright;

namespace {

struct InstructionSet {
    const char *name;
    bool (*runs_here)();
    LinearFunction linear;
    Int8Function int8_linear;
};

#if defined(SPARSEWRIGHT_X86)
bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

// Best first. A new set is one line here and one in CMakeLists.txt.
const InstructionSet sets[] = {
#if defined(SPARSEWRIGHT_X86)
    {"avx512_vnni", [] { return has_avx512() && __builtin_cpu_supports("avx512vnni"); },
     sparsewright_sparse_linear_avx512, sparsewright_int8_linear_avx512_vnni},
    {"avx512", has_avx512, sparsewright_sparse_linear_avx512, sparsewright_int8_linear_avx512},
    {"avx_vnni", [] { return has_avx2() && __builtin_cpu_supports("avxvnni"); }, sparsewright_sparse_linear_avx2,
     sparsewright_int8_linear_avx_vnni},
    {"avx2", has_avx2, sparsewright_sparse_linear_avx2, sparsewright_int8_linear_avx2},
#endif
    {"scalar", [] { return true; }, sparsewright_sparse_linear_portable, sparsewright_int8_linear_portable},
};

// The best set that this processor runs, or a lower one that SPARSEWRIGHT_ISA names.
const InstructionSet &choose() {
    const char *forced = std::getenv("SPARSEWRIGHT_ISA");
    if (forced && !*forced) forced = nullptr;
    std::string known;
    for (const InstructionSet &set : sets) {
        if (set.runs_here()) known += known.empty() ? set.name : std::string(", ") + set.name;
        if (forced ? forced == std::string(set.name) && set.runs_here() : set.runs_here()) return set;
    }
    throw std::runtime_error(std::string("SPARSEWRIGHT_ISA=") + forced + " names no instruction set that runs here: " +
                             known + ". Unset it to use the best one.");
}

const InstructionSet &current() {
    static const InstructionSet &set = choose();
    return set;
}

// The peak loop of the widest vectors that the chosen set has.
double fma_peak([[maybe_unused]] std::int64_t iterations) {
#if defined(SPARSEWRIGHT_X86)
    const std::string name = current().name;
    if (name.starts_with("avx512")) return sparsewright_fma_peak_avx512(iterations);
    if (name == "avx2" || name == "avx_vnni") return sparsewright_fma_peak_avx2(iterations);
#endif
    return sparsewright_fma_peak_portable(iterations);
}

// Bytes of a data cache as the operating system tells it; `usual` where it does not.
std::int64_t cache_bytes([[maybe_unused]] int name, std::int64_t usual) {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    const long bytes = sysconf(name);
    if (bytes > 0) return bytes;
#endif
    return usual;
}

#if !defined(_SC_LEVEL1_DCACHE_SIZE)
#define _SC_LEVEL1_DCACHE_SIZE 0
#define _SC_LEVEL2_CACHE_SIZE 0
#endif

template <class T> T *at(std::uintptr_t address) { return reinterpret_cast<T *>(address); }

// A packed weight in the vector layout, as addresses. The Python owner keeps the memory alive.
class Operand {
  public:
    Operand(std::uintptr_t values, bool half_values, std::uintptr_t index, std::uintptr_t pointers, std::int64_t out,
            std::int64_t in, int group, std::int64_t blocks, std::int64_t block_columns, int kept_per_8)
        : problem_{} {
        if (group != 1 && group != 2 && group != 4 && group != 8 && group != 16)
            throw std::invalid_argument("the group must be 1, 2, 4, 8 or 16");
        if (out < 1 || in < 1 || blocks < 1 || block_columns < 1 || block_columns > 256 || blocks * block_columns < in)
            throw std::invalid_argument("the blocks do not cover the input columns");
        problem_.values = at<void>(values);
        problem_.half_values = half_values;
        problem_.index = at<std::uint8_t>(index);
        problem_.pointers = at<std::int32_t>(pointers);
        problem_.out = out;
        problem_.in = in;
        problem_.group = group;
        problem_.blocks = blocks;
        problem_.block_columns = block_columns;
        problem_.groups = (out + group - 1) / group;
        problem_.kept_per_8 = kept_per_8;
        static const std::int64_t level1 = cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 * 1024);
        static const std::int64_t level2 = cache_bytes(_SC_LEVEL2_CACHE_SIZE, 512 * 1024);
        problem_.level1_bytes = level1;
        problem_.level2_bytes = level2;
        linear_ = current().linear;
    }

    void linear(std::uintptr_t x, std::int64_t x_stride, std::int64_t tokens, std::uintptr_t bias, std::uintptr_t y,
                int kernel, int threads) const {
        LinearProblem problem = problem_;
        problem.x = at<float>(x);
        problem.x_stride = x_stride;
        problem.tokens = tokens;
        problem.bias = at<float>(bias);
        problem.y = at<float>(y);
        problem.kernel = static_cast<Kernel>(kernel);
        problem.threads = threads;
        if (tokens < 1) return;
        linear_(problem);
    }

  private:
    LinearProblem problem_;
    LinearFunction linear_;
};

// A packed weight in the layout "int8", likewise.
class Int8Operand {
  public:
    Int8Operand(std::uintptr_t values, std::uintptr_t columns, std::uintptr_t pointers, std::uintptr_t scale,
                std::uintptr_t sums, std::int64_t out, std::int64_t in, int group)
        : problem_{} {
        if ((group != 4 && group != 8 && group != 16) || out < 1 || in < 1 || in > 65536)
            throw std::invalid_argument("int8 weights lie in groups of 4, 8 or 16 rows, of 1 to 65536 columns");
        problem_.values = at<std::int8_t>(values);
        problem_.columns = at<std::uint16_t>(columns);
        problem_.pointers = at<std::int32_t>(pointers);
        problem_.scale = at<float>(scale);
        problem_.sums = at<std::int32_t>(sums);
        problem_.out = out;
        problem_.in = in;
        problem_.group = group;
        problem_.groups = (out + group - 1) / group;
        linear_ = current().int8_linear;
    }

    void linear(std::uintptr_t x, std::int64_t x_stride, std::int64_t tokens, std::uintptr_t bias, std::uintptr_t y,
                int threads) const {
        Int8Problem problem = problem_;
        problem.x = at<float>(x);
        problem.x_stride = x_stride;
        problem.tokens = tokens;
        problem.bias = at<float>(bias);
        problem.y = at<float>(y);
        problem.threads = threads;
        if (tokens < 1) return;
        linear_(problem);
    }

  private:
    Int8Problem problem_;
    Int8Function linear_;
};

}  // namespace

NB_MODULE(_core, m) {
    m.def("instruction_set", [] { return std::string(current().name); });
    m.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const InstructionSet &set : sets)
            if (set.runs_here()) names.push_back(set.name);
        return names;
    });
    m.def("fma_peak", &fma_peak, nb::arg("iterations"), nb::call_guard<nb::gil_scoped_release>());
    nb::class_<Operand>(m, "Operand")
        .def(nb::init<std::uintptr_t, bool, std::uintptr_t, std::uintptr_t, std::int64_t, std::int64_t, int,
                      std::int64_t, std::int64_t, int>(),
             nb::arg("values"), nb::arg("half_values"), nb::arg("index"), nb::arg("pointers"), nb::arg("out"),
             nb::arg("in_"), nb::arg("group"), nb::arg("blocks"), nb::arg("block_columns"), nb::arg("kept_per_8"))
        .def("linear", &Operand::linear, nb::arg("x"), nb::arg("x_stride"), nb::arg("tokens"), nb::arg("bias"),
             nb::arg("y"), nb::arg("kernel"), nb::arg("threads"), nb::call_guard<nb::gil_scoped_release>());
    nb::class_<Int8Operand>(m, "Int8Operand")
        .def(nb::init<std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::int64_t,
                      std::int64_t, int>(),
             nb::arg("values"), nb::arg("columns"), nb::arg("pointers"), nb::arg("scale"), nb::arg("sums"),
             nb::arg("out"), nb::arg("in_"), nb::arg("group"))
        .def("linear", &Int8Operand::linear, nb::arg("x"), nb::arg("x_stride"), nb::arg("tokens"), nb::arg("bias"),
             nb::arg("y"), nb::arg("threads"), nb::call_guard<nb::gil_scoped_release>());
}
