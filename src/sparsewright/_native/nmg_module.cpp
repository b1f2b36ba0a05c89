#include "nmg_module.hpp"

#include <stdexcept>

#include "quick_call.hpp"

namespace nb = nanobind;

namespace sparsewright {

namespace {

NmgMachine machine_here{};

template <class T> T *at(std::uintptr_t address) { return reinterpret_cast<T *>(address); }

// A packed weight in the layout "nmg", as addresses. The Python owner keeps the memory alive.
class NmgOperand {
  public:
    NmgOperand(std::uintptr_t values, bool half_values, std::uintptr_t index, std::uintptr_t rows, std::int64_t out,
               std::int64_t in, std::int64_t n, std::int64_t m, std::int64_t g, std::int64_t patterns)
        : problem_{} {
        if (out < 1 || in < 1 || n < 1 || n > m || m > 256 || g < 1 || patterns < 1 || patterns > most_patterns ||
            patterns * g > 32768)
            throw std::invalid_argument("n:m:g weights keep n of m rows, in chunks of at most 32768 columns");
        problem_.values = at<void>(values);
        problem_.half_values = half_values;
        problem_.index = at<std::int16_t>(index);
        problem_.rows = at<std::uint8_t>(rows);
        problem_.out = out;
        problem_.in = in;
        problem_.n = n;
        problem_.m = m;
        problem_.g = g;
        problem_.patterns = patterns;
        problem_.blocks = (out + m - 1) / m;
        problem_.chunks = (in + patterns * g - 1) / (patterns * g);
        problem_.level1_bytes = machine_here.level1_bytes;
        problem_.level2_bytes = machine_here.level2_bytes;
        linear_ = machine_here.linear();
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
    NmgProblem problem_;
    NmgFunction linear_;
};

void assign(std::uintptr_t scores, std::int64_t blocks, std::int64_t in, std::int64_t n, std::int64_t m,
            std::int64_t g, std::int64_t patterns, std::uintptr_t rows, std::uintptr_t chosen, int threads) {
    machine_here.assignment()({at<double>(scores), blocks, in, m, n, g, patterns, at<std::uint8_t>(rows),
                               at<std::int32_t>(chosen), threads});
}

}  // namespace

void add_nmg(nb::module_ &m, const NmgMachine &machine) {
    machine_here = machine;
    m.def("grouped_nm", &assign, nb::arg("scores"), nb::arg("blocks"), nb::arg("in_"), nb::arg("n"), nb::arg("m"),
          nb::arg("g"), nb::arg("patterns"), nb::arg("rows"), nb::arg("chosen"), nb::arg("threads"),
          nb::call_guard<nb::gil_scoped_release>());
    nb::class_<NmgOperand>(m, "NmgOperand")
        .def("quick_call", &quick_call<NmgOperand>, nb::arg("planes"), nb::arg("plan"),
             nb::arg("out"), nb::arg("in_"))
        .def(nb::init<std::uintptr_t, bool, std::uintptr_t, std::uintptr_t, std::int64_t, std::int64_t, std::int64_t,
                      std::int64_t, std::int64_t, std::int64_t>(),
             nb::arg("values"), nb::arg("half_values"), nb::arg("index"), nb::arg("rows"), nb::arg("out"),
             nb::arg("in_"), nb::arg("n"), nb::arg("m"), nb::arg("g"), nb::arg("patterns"))
        .def("linear", &NmgOperand::linear, nb::arg("x"), nb::arg("x_stride"), nb::arg("tokens"), nb::arg("bias"),
             nb::arg("y"), nb::arg("threads"), nb::arg("activation") = 0,
             nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace sparsewright
