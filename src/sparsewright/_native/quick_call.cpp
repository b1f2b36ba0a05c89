#include "quick_call.hpp"

#include <utility>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace nb = nanobind;

namespace sparsewright {

namespace {

// The parts of dlpack.h that are used; its major version says whether they still hold.
struct DataType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};
struct TensorView {
    void *data;
    std::int32_t device_type, device_id;
    std::int32_t dimensions;
    DataType type;
    std::int64_t *shape, *strides;
    std::uint64_t byte_offset;
};
struct ExchangeFunctions {
    std::uint32_t major, minor;
    ExchangeFunctions *previous;
    void *allocate, *from_object, *to_object;
    int (*view)(void *object, TensorView *out);  // may be null
};
constexpr std::uint32_t known_major = 1;
constexpr std::int32_t cpu = 1;

// Counts what plans depend on and cannot see.
std::uint64_t choice_now = 1;

// Things of torch that every call asks, looked up once. Never freed: torch may be gone before this is.
struct Torch {
    PyTypeObject *tensor, *parameter;
    ExchangeFunctions *exchange = nullptr;
    PyObject *grad_enabled, *autocast_enabled, *cpu_name, *modes, *tracing, *functorch;
    PyObject *requires_grad, *is_neg, *new_empty, *version, *data_ptr;

    Torch() {
        const nb::module_ torch = nb::module_::import_("torch"), c = nb::module_::import_("torch._C");
        const auto kept = [](nb::object object) { return object.release().ptr(); };
        tensor = reinterpret_cast<PyTypeObject *>(kept(torch.attr("Tensor")));
        parameter = reinterpret_cast<PyTypeObject *>(kept(torch.attr("nn").attr("Parameter")));
        grad_enabled = kept(torch.attr("is_grad_enabled"));
        autocast_enabled = kept(torch.attr("is_autocast_enabled"));
        cpu_name = kept(nb::str("cpu"));
        modes = kept(c.attr("_len_torch_dispatch_stack"));
        tracing = kept(c.attr("_get_tracing_state"));
        functorch = kept(c.attr("_functorch").attr("peek_interpreter_stack"));
        requires_grad = PyUnicode_InternFromString("requires_grad");
        is_neg = PyUnicode_InternFromString("is_neg");
        new_empty = PyUnicode_InternFromString("new_empty");
        version = PyUnicode_InternFromString("_version");
        data_ptr = PyUnicode_InternFromString("data_ptr");
        const nb::object capsule = nb::getattr(torch.attr("Tensor"), "__dlpack_c_exchange_api__", nb::none());
        if (capsule.is_none()) return;
        auto *found = static_cast<ExchangeFunctions *>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        if (!found) PyErr_Clear();
        else if (found->major == known_major && found->view) exchange = found;
    }
};

const Torch &torch_parts() {
    static const Torch &parts = *new Torch;
    return parts;
}

// Whether a function without arguments, or with one, gives `wanted`.
bool gives(PyObject *function, PyObject *wanted, PyObject *argument = nullptr) {
    const nb::object got = nb::steal(argument ? PyObject_CallOneArg(function, argument) : PyObject_CallNoArgs(function));
    if (!got.is_valid()) nb::raise_python_error();
    return got.ptr() == wanted;
}

bool is_true(PyObject *object, PyObject *attribute) {
    const nb::object got = nb::steal(PyObject_GetAttr(object, attribute));
    if (!got.is_valid()) nb::raise_python_error();
    return got.ptr() == Py_True;
}

// Reads a tensor of float32 on the CPU that has bytes of its own and no subclass; false for every other.
bool view(const Torch &torch, PyObject *object, TensorView &out) {
    if (Py_TYPE(object) != torch.tensor && Py_TYPE(object) != torch.parameter) return false;
    if (torch.exchange->view(object, &out)) {
        PyErr_Clear();
        return false;
    }
    const bool floats = out.type.code == 2 && out.type.bits == 32 && out.type.lanes == 1;
    if (!floats || out.device_type != cpu || !out.data || out.dimensions < 1) return false;
    PyObject *arguments[] = {object};
    const nb::object negated = nb::steal(PyObject_VectorcallMethod(torch.is_neg, arguments, 1, nullptr));
    if (!negated.is_valid()) nb::raise_python_error();
    return negated.ptr() == Py_False;
}

const float *floats_of(const TensorView &of) {
    return reinterpret_cast<const float *>(static_cast<const char *>(of.data) + of.byte_offset);
}

bool contiguous(const TensorView &of) {
    std::int64_t step = 1;
    for (int i = of.dimensions; of.strides && i-- > 0; step *= of.shape[i])
        if (of.shape[i] != 1 && of.strides[i] != step) return false;
    return true;
}

int pool_threads() {
#if defined(_OPENMP)
    return omp_get_max_threads();  // what torch.get_num_threads() tells: one library serves both
#else
    return 1;
#endif
}

// How often a tensor was written to; 0 where torch does not count it.
std::int64_t version_of(const Torch &torch, PyObject *tensor) {
    const nb::object got = nb::steal(PyObject_GetAttr(tensor, torch.version));
    if (!got.is_valid()) {
        PyErr_Clear();
        return 0;
    }
    return PyLong_AsLongLong(got.ptr());
}

// Where the bytes of a tensor of any kind lie; null where they cannot be told.
const void *data_of(const Torch &torch, PyObject *tensor) {
    TensorView of;
    if (!torch.exchange) {
        const nb::object address = nb::steal(PyObject_CallMethodNoArgs(tensor, torch.data_ptr));
        if (!address.is_valid()) PyErr_Clear();
        return address.is_valid() ? PyLong_AsVoidPtr(address.ptr()) : nullptr;
    }
    if (torch.exchange->view(tensor, &of)) {
        PyErr_Clear();
        return nullptr;
    }
    return of.data ? static_cast<const char *>(of.data) + of.byte_offset : nullptr;
}

}  // namespace

QuickCall::QuickCall(std::function<void(const LinearCall &)> run, nb::object owner, nb::list planes, nb::object plan,
                     std::int64_t out, std::int64_t in)
    : run_(std::move(run)), owner_(std::move(owner)), plan_(std::move(plan)), out_(out), in_(in) {
    const Torch &torch = torch_parts();
    for (nb::handle plane : planes)
        planes_.push_back({nb::borrow(plane), data_of(torch, plane.ptr()), version_of(torch, plane.ptr())});
}

bool QuickCall::planes_stand() const {
    const Torch &torch = torch_parts();
    for (const Plane &plane : planes_)
        if (data_of(torch, plane.tensor.ptr()) != plane.data || version_of(torch, plane.tensor.ptr()) != plane.version)
            return false;
    return true;
}

const QuickCall::Plan &QuickCall::plan_for(std::int64_t tokens) {
    Plan &plan = plans_[tokens % 8];
    const int pool = pool_threads();
    if (plan.tokens != tokens || plan.pool != pool || plan.choice != choice_now) {
        const nb::object made = plan_(tokens);
        plan = {tokens, nb::cast<int>(made[0]), nb::cast<int>(made[1]), pool, choice_now};
    }
    return plan;
}

nb::object QuickCall::operator()(nb::handle x, nb::handle bias, int activation) {
    const Torch &torch = torch_parts();
    TensorView from, more{};
    if (!torch.exchange || !view(torch, x.ptr(), from)) return nb::none();
    if (!bias.is_none()) {
        if (!view(torch, bias.ptr(), more)) return nb::none();
        if (more.dimensions != 1 || more.shape[0] != out_ || !contiguous(more)) return nb::none();
    }
    const std::int64_t last = from.dimensions - 1;
    if (from.shape[last] != in_) return nb::none();
    const bool spaced = from.dimensions == 2 && from.strides && from.strides[1] == 1;
    if (!spaced && !contiguous(from)) return nb::none();
    std::int64_t tokens = 1;
    for (std::int64_t i = 0; i < last; ++i) tokens *= from.shape[i];
    if (tokens < 1 || !planes_stand()) return nb::none();
    const bool learns = is_true(x.ptr(), torch.requires_grad) || (more.data && is_true(bias.ptr(), torch.requires_grad));
    if (learns && !gives(torch.grad_enabled, Py_False)) return nb::none();
    if (!gives(torch.functorch, Py_None) || !gives(torch.tracing, Py_None) ||
        !gives(torch.autocast_enabled, Py_False, torch.cpu_name))
        return nb::none();
    const nb::object modes = nb::steal(PyObject_CallNoArgs(torch.modes));
    if (!modes.is_valid()) nb::raise_python_error();
    if (PyLong_AsLong(modes.ptr()) != 0) return nb::none();

    const nb::object shape = nb::steal(PyTuple_New(from.dimensions));
    for (std::int64_t i = 0; i <= last; ++i)
        PyTuple_SET_ITEM(shape.ptr(), i, PyLong_FromLongLong(i == last ? out_ : from.shape[i]));
    PyObject *arguments[] = {x.ptr(), shape.ptr()};
    nb::object y = nb::steal(PyObject_VectorcallMethod(torch.new_empty, arguments, 2, nullptr));
    if (!y.is_valid()) nb::raise_python_error();
    TensorView to;
    if (!view(torch, y.ptr(), to)) return nb::none();
    const Plan &plan = plan_for(tokens);
    const LinearCall call{floats_of(from), spaced && tokens > 1 && from.strides ? from.strides[0] : in_,
                          tokens, more.data ? floats_of(more) : nullptr, const_cast<float *>(floats_of(to)),
                          plan.kernel, plan.threads, activation};
    {
        nb::gil_scoped_release released;
        run_(call);
    }
    return y;
}

void add_quick_call(nb::module_ &m) {
    nb::class_<QuickCall>(m, "QuickCall")
        .def("__call__", &QuickCall::operator(), nb::arg("x"), nb::arg("bias").none(), nb::arg("activation") = 0)
        .def("planes_stand", &QuickCall::planes_stand);
    m.def("forget_plans", [] { ++choice_now; });
}

}  // namespace sparsewright
