// The Python side of the native library. It sees torch only as addresses, so it builds without torch.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__unix__)
#include <unistd.h>
#endif

#include <array>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/sparse_conv/problem.hpp"
#include "../kernels/sparse_linear/int8_problem.hpp"
#include "../kernels/sparse_linear/problem.hpp"
#include "instruction_sets.hpp"
#include "nmg_module.hpp"
#include "peak.hpp"
#include "quick_call.hpp"
#include "transposable_module.hpp"

namespace nb = nanobind;
using namespace sparsewright;

namespace {

struct InstructionSet {
    const char *name;
    bool (*runs_here)();
    LinearFunction linear;
    Int8Function int8_linear;
    NmgFunction nmg_linear;
    GroupedFunction grouped_nm;
    TransposableFunction transposable;
    ConvFunction conv;
    PeakFunction fma_peak;
};

#define SPARSEWRIGHT_SET(name, runs, floats, ints) \
    {#name,                                                                                               \
     [] { return static_cast<bool>(runs); },                                                              \
     sparsewright_sparse_linear_##floats,                                                                 \
     sparsewright_int8_linear_##ints,                                                                     \
     sparsewright_nmg_linear_##floats,                                                                    \
     sparsewright_grouped_nm_##floats,                                                                    \
     sparsewright_transposable_##floats,                                                                  \
     sparsewright_sparse_conv_##floats,                                                                   \
     sparsewright_fma_peak_##floats},

// Best first. A new kernel is one member above and one entry of this line.
const InstructionSet sets[] = {SPARSEWRIGHT_SETS(SPARSEWRIGHT_SET)};

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
    Operand(std::uintptr_t values, int value_type, std::uintptr_t scale, std::uintptr_t index, std::uintptr_t pointers,
            std::int64_t out, std::int64_t in, int group, std::int64_t blocks, std::int64_t block_columns,
            int kept_per_8)
        : problem_{} {
        if (group != 1 && group != 2 && group != 4 && group != 8 && group != 16)
            throw std::invalid_argument("the group must be 1, 2, 4, 8 or 16");
        if (out < 1 || in < 1 || blocks < 1 || block_columns < 1 || block_columns > 256 || blocks * block_columns < in)
            throw std::invalid_argument("the blocks do not cover the input columns");
        if (value_type < 0 || value_type > 2 || (value_type != 2 && scale != 0))
            throw std::invalid_argument("values are float32, float16 or int8, and only int8 values have scales");
        problem_.values = at<void>(values);
        problem_.value_type = static_cast<ValueType>(value_type);
        problem_.scale = at<float>(scale);
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
        conv_ = current().conv;
    }

    void linear(std::uintptr_t x, std::int64_t x_stride, std::int64_t tokens, std::uintptr_t bias, std::uintptr_t y,
                int kernel, int threads, int activation) const {
        if (tokens < 1) return;
        run({at<float>(x), x_stride, tokens, at<float>(bias), at<float>(y), kernel, threads, activation});
    }

    void run(const LinearCall &call) const {
        LinearProblem problem = with_call(problem_, call);
        problem.kernel = static_cast<Kernel>(call.kernel);
        if (problem.kernel == Kernel::strip_lane) {
            if (!problem.records) throw std::invalid_argument("the weight has no strips");
            problem.group = 4;
            problem.groups = problem.out / 4;
        }
        linear_(problem);
    }

    // For a weight that keeps two of every four rows and columns: what strip_lane.hpp reads, made by strips.py.
    void set_strips(std::uintptr_t records, std::uintptr_t counts) {
        if (problem_.group != 1 || problem_.out % 4 || problem_.in % 4 || problem_.block_columns % 4 || !records || !counts)
            throw std::invalid_argument("strips are four single rows of whole tiles");
        problem_.records = at<std::uint32_t>(records);
        problem_.counts = at<std::uint16_t>(counts);
    }

    // dx (tokens, in) = dy (tokens, out) W.
    void input_grad(std::uintptr_t dy, std::int64_t dy_stride, std::int64_t tokens, std::uintptr_t dx,
                    int threads) const {
        if (problem_.group < 4) throw std::invalid_argument("groups of 1 and 2 rows go by columns");
        linear(dy, dy_stride, tokens, 0, dx, static_cast<int>(Kernel::input_grad_by_rows), threads, 0);
    }

    // The same by way of the transposed structure: for every block of `block_groups` row groups and every column of W,
    // which groups keep it (`index`, inside the block) and where their values lie (`places`).
    void input_grad_by_columns(std::uintptr_t dy, std::int64_t dy_stride, std::int64_t tokens, std::uintptr_t dx,
                               std::uintptr_t index, std::uintptr_t pointers, std::uintptr_t places,
                               std::int64_t blocks, std::int64_t block_groups, int threads) const {
        if (problem_.group >= 4) throw std::invalid_argument("groups of 4 rows or more go by rows");
        if (blocks < 1 || block_groups < 1 || block_groups > 256 || blocks * block_groups < problem_.groups)
            throw std::invalid_argument("the blocks do not cover the row groups");
        LinearProblem problem = problem_;
        problem.rows = problem_.out;
        problem.in = problem_.groups;
        problem.out = problem_.in;
        problem.index = at<std::uint8_t>(index);
        problem.pointers = at<std::int32_t>(pointers);
        problem.places = at<std::int32_t>(places);
        problem.blocks = blocks;
        problem.block_columns = block_groups;
        problem.x = at<float>(dy);
        problem.x_stride = dy_stride;
        problem.tokens = tokens;
        problem.y = at<float>(dx);
        problem.kernel = Kernel::input_grad_by_columns;
        problem.threads = threads;
        if (tokens < 1) return;
        linear_(problem);
    }

    // The same for strips of four columns, in blocks of `block_rows` rows of W.
    void strip_input_grad(std::uintptr_t dy, std::int64_t dy_stride, std::int64_t tokens, std::uintptr_t dx,
                          std::uintptr_t records, std::uintptr_t counts, std::int64_t blocks, std::int64_t block_rows,
                          int threads) const {
        if (!problem_.records || problem_.value_type != ValueType::float32)
            throw std::invalid_argument("the weight has no strips of floats");
        if (blocks < 1 || block_rows < 4 || block_rows % 4 || block_rows > 256 || blocks * block_rows < problem_.out)
            throw std::invalid_argument("the blocks do not cover the rows");
        LinearProblem problem = problem_;
        problem.turned_columns = problem_.block_columns;
        problem.in = problem_.out;
        problem.out = problem_.in;
        problem.group = 4;
        problem.groups = problem.out / 4;
        problem.records = at<std::uint32_t>(records);
        problem.counts = at<std::uint16_t>(counts);
        problem.blocks = blocks;
        problem.block_columns = block_rows;
        problem.x = at<float>(dy);
        problem.x_stride = dy_stride;
        problem.tokens = tokens;
        problem.y = at<float>(dx);
        problem.kernel = Kernel::strip_input_grad;
        problem.threads = threads;
        if (tokens < 1) return;
        linear_(problem);
    }

    // dW (kept, group) = dy^T x at the kept places, summed over the tokens.
    void weight_grad(std::uintptr_t dy, std::int64_t dy_stride, std::uintptr_t x, std::int64_t x_stride,
                     std::int64_t tokens, std::uintptr_t dw, int threads) const {
        LinearProblem problem = problem_;
        problem.dy = at<float>(dy);
        problem.dy_stride = dy_stride;
        problem.x = at<float>(x);
        problem.x_stride = x_stride;
        problem.tokens = tokens;
        problem.y = at<float>(dw);
        problem.kernel = Kernel::weight_grad;
        problem.threads = threads;
        if (tokens < 1) return;
        linear_(problem);
    }

    // `geometry`: batch, channels, height, width, kernel, stride and dilation as (down, across), rows and columns of
    // zeros before the image, height and width of the output, groups of channels.
    void conv2d(std::uintptr_t x, std::uintptr_t bias, std::uintptr_t y, const std::array<std::int64_t, 15> &geometry,
                bool channels_last, int threads) const {
        ConvProblem problem{};
        problem.weight = problem_;
        problem.weight.bias = at<float>(bias);
        problem.weight.threads = threads;
        problem.used = used();
        problem.x = at<float>(x);
        problem.y = at<float>(y);
        const std::int64_t *size = geometry.data();
        for (std::int64_t *goal :
             {&problem.batch, &problem.channels, &problem.height, &problem.width, &problem.kernel_h, &problem.kernel_w,
              &problem.stride_h, &problem.stride_w, &problem.dilation_h, &problem.dilation_w, &problem.top,
              &problem.left, &problem.out_h, &problem.out_w, &problem.conv_groups})
            *goal = *size++;
        problem.channels_last = channels_last;
        if (problem.channels / problem.conv_groups * problem.kernel_h * problem.kernel_w != problem_.in)
            throw std::invalid_argument("the kernel and channels do not make the columns of the weight");
        if (problem.conv_groups > 1 && problem_.out % (problem.conv_groups * problem_.group))
            throw std::invalid_argument("row groups cross groups of channels");
        if (problem.batch < 1 || problem.out_h < 1 || problem.out_w < 1) return;
        conv_(problem);
    }

  private:
    LinearProblem problem_;
    LinearFunction linear_;
    ConvFunction conv_;
    // Columns that any row keeps, found when a convolution first asks.
    const std::uint8_t *used() const {
        std::call_once(once_, [&] {
            const std::int64_t groups = problem_.groups, columns = problem_.block_columns;
            used_.assign(problem_.in, 0);
            for (std::int64_t b = 0; b < problem_.blocks; ++b)
                for (std::int64_t k = problem_.pointers[b * (groups + 1)];
                     k < problem_.pointers[(b + 1) * (groups + 1) - 1]; ++k)
                    if (b * columns + problem_.index[k] < problem_.in) used_[b * columns + problem_.index[k]] = 1;
        });
        return used_.data();
    }

    mutable std::vector<std::uint8_t> used_;
    mutable std::once_flag once_;
};

// A packed weight in the layout "int8", likewise.
class Int8Operand {
  public:
    Int8Operand(std::uintptr_t values, std::uintptr_t columns, std::uintptr_t pointers, std::uintptr_t scale,
                std::uintptr_t sums, std::int64_t out, std::int64_t in, int group)
        : problem_{} {
        if ((group != 2 && group != 4 && group != 8 && group != 16) || out < 1 || in < 1 || in > 65536)
            throw std::invalid_argument("int8 weights lie in groups of 2, 4, 8 or 16 rows, of 1 to 65536 columns");
        if (columns == 0 && group == 2) throw std::invalid_argument("dense int8 weights lie in groups of 16 rows");
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
                int threads, int activation) const {
        if (tokens < 1) return;
        run({at<float>(x), x_stride, tokens, at<float>(bias), at<float>(y), 0, threads, activation});
    }

    void run(const LinearCall &call) const {
        linear_(with_call(problem_, call));
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
    m.def("fma_peak", [](std::int64_t iterations) { return current().fma_peak(iterations); },
          nb::arg("iterations"), nb::call_guard<nb::gil_scoped_release>());
    add_quick_call(m);
    nb::class_<Operand>(m, "Operand")
        .def("quick_call", &quick_call<Operand>, nb::arg("planes"), nb::arg("plan"),
             nb::arg("out"), nb::arg("in_"))
        .def(nb::init<std::uintptr_t, int, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::int64_t, std::int64_t,
                      int, std::int64_t, std::int64_t, int>(),
             nb::arg("values"), nb::arg("value_type"), nb::arg("scale"), nb::arg("index"), nb::arg("pointers"), nb::arg("out"),
             nb::arg("in_"), nb::arg("group"), nb::arg("blocks"), nb::arg("block_columns"), nb::arg("kept_per_8"))
        .def("linear", &Operand::linear, nb::arg("x"), nb::arg("x_stride"), nb::arg("tokens"), nb::arg("bias"),
             nb::arg("y"), nb::arg("kernel"), nb::arg("threads"), nb::arg("activation") = 0,
             nb::call_guard<nb::gil_scoped_release>())
        .def("input_grad", &Operand::input_grad, nb::arg("dy"), nb::arg("dy_stride"), nb::arg("tokens"), nb::arg("dx"),
             nb::arg("threads"), nb::call_guard<nb::gil_scoped_release>())
        .def("input_grad_by_columns", &Operand::input_grad_by_columns, nb::arg("dy"), nb::arg("dy_stride"),
             nb::arg("tokens"), nb::arg("dx"), nb::arg("index"), nb::arg("pointers"), nb::arg("places"),
             nb::arg("blocks"), nb::arg("block_groups"), nb::arg("threads"), nb::call_guard<nb::gil_scoped_release>())
        .def("set_strips", &Operand::set_strips, nb::arg("records"), nb::arg("counts"))
        .def("strip_input_grad", &Operand::strip_input_grad, nb::arg("dy"), nb::arg("dy_stride"), nb::arg("tokens"),
             nb::arg("dx"), nb::arg("records"), nb::arg("counts"), nb::arg("blocks"), nb::arg("block_rows"),
             nb::arg("threads"), nb::call_guard<nb::gil_scoped_release>())
        .def("weight_grad", &Operand::weight_grad, nb::arg("dy"), nb::arg("dy_stride"), nb::arg("x"),
             nb::arg("x_stride"), nb::arg("tokens"), nb::arg("dw"), nb::arg("threads"),
             nb::call_guard<nb::gil_scoped_release>())
        .def("conv2d", &Operand::conv2d, nb::arg("x"), nb::arg("bias"), nb::arg("y"), nb::arg("geometry"),
             nb::arg("channels_last"), nb::arg("threads"), nb::call_guard<nb::gil_scoped_release>());
    nb::class_<Int8Operand>(m, "Int8Operand")
        .def("quick_call", &quick_call<Int8Operand>, nb::arg("planes"), nb::arg("plan"),
             nb::arg("out"), nb::arg("in_"))
        .def(nb::init<std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::int64_t,
                      std::int64_t, int>(),
             nb::arg("values"), nb::arg("columns"), nb::arg("pointers"), nb::arg("scale"), nb::arg("sums"),
             nb::arg("out"), nb::arg("in_"), nb::arg("group"))
        .def("linear", &Int8Operand::linear, nb::arg("x"), nb::arg("x_stride"), nb::arg("tokens"), nb::arg("bias"),
             nb::arg("y"), nb::arg("threads"), nb::arg("activation") = 0,
             nb::call_guard<nb::gil_scoped_release>());
    add_nmg(m, {[] { return current().nmg_linear; }, [] { return current().grouped_nm; },
                cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 * 1024), cache_bytes(_SC_LEVEL2_CACHE_SIZE, 512 * 1024)});
    add_transposable(m, [] { return current().transposable; });
}
