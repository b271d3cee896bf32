// The device "second" for tests on a machine without an accelerator: its memory is the host's and its kernels are the CPU's, but
// it refuses to mix its tensors with those of another device, as CUDA does. Two environment variables make it like other devices:
// SECOND_DEVICE_NO_FLOAT64 refuses float64, as Apple's GPUs do; SECOND_DEVICE_MOST_BYTES is the largest tensor that it has memory for.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>

using at::Tensor;
using c10::SymInt;
using c10::SymIntArrayRef;

namespace {

const c10::Device HERE(c10::DeviceType::PrivateUse1, 0);

// --- memory

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const char* most = std::getenv("SECOND_DEVICE_MOST_BYTES");
    TORCH_CHECK(!most || bytes <= std::stoull(most), "second backend out of memory: tried to allocate ", bytes, " bytes");
    void* memory = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {memory, memory, &release, HERE};
  }
  static void release(void* memory) {
    if (memory) c10::free_cpu(memory);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Allocator allocator;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &allocator);

void resize(const c10::Storage& storage, size_t bytes) {
  auto fresh = allocator.allocate(bytes);
  if (storage.data()) std::memcpy(fresh.get(), storage.data(), std::min(bytes, storage.nbytes()));
  storage.unsafeGetStorageImpl()->set_data_ptr(std::move(fresh));
  storage.unsafeGetStorageImpl()->set_nbytes(bytes);
}

// --- what torch asks a device for: a single one, without streams and events

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return HERE.type(); }
  c10::Device exchangeDevice(c10::Device) const override { return HERE; }
  c10::Device getDevice() const override { return HERE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::Stream getNewStream(c10::Device, int) const override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    TORCH_CHECK(false, "the second device has no events");
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::Device getDeviceFromPtr(void*) const override { return HERE; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static at::Generator generator = at::detail::createCPUGenerator();
    return generator;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override { resize(storage, bytes); }
};

// --- kernels of its own: making, viewing and copying tensors, convolutions, for which torch has no fallback, and batch normalisation

c10::ScalarType allowed(std::optional<c10::ScalarType> dtype) {
  const auto wanted = c10::dtype_or_default(dtype);
  const bool refused = std::getenv("SECOND_DEVICE_NO_FLOAT64") && (wanted == c10::kDouble || wanted == c10::kComplexDouble);
  TORCH_CHECK_TYPE(!refused, "Cannot convert a tensor to float64: the second device has none");
  return wanted;
}

Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>, std::optional<c10::Device>,
             std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), allowed(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> dtype,
                     std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
  return at::detail::empty_strided_generic(size, stride, &allocator, keys, allowed(dtype));
}

// The same memory as a tensor of the CPU's.
Tensor on_host(const Tensor& t) {
  if (!t.defined() || t.device() != HERE) return t;
  const auto elements = static_cast<int64_t>(t.storage().nbytes() / t.itemsize());
  const auto flat = at::from_blob(t.storage().mutable_data(), {elements}, at::TensorOptions().dtype(t.dtype()));
  return flat.as_strided(t.sizes(), t.strides(), t.storage_offset());
}

Tensor moved_here(const Tensor& t) {
  if (!t.defined()) return t;
  auto moved = empty_strided(t.sizes(), t.strides(), t.scalar_type(), {}, {}, {});
  on_host(moved).copy_(t);
  return moved;
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  at::AutoDispatchBelowADInplaceOrView below;
  on_host(to).copy_(on_host(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  to.resize_(from.sizes());
  on_host(to).copy_(on_host(from));
  return to;
}

const Tensor& resize_(const Tensor& self, SymIntArrayRef size, std::optional<c10::MemoryFormat>) {
  if (self.sym_sizes() == size) return self;  // a view keeps its strides
  self.unsafeGetTensorImpl()->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  const size_t bytes = (self.storage_offset() + self.numel()) * self.itemsize();
  if (bytes > self.storage().nbytes()) resize(self.storage(), bytes);
  return self;
}

Tensor& set_(Tensor& self, at::Storage source, SymInt offset, SymIntArrayRef size, SymIntArrayRef stride) {
  TORCH_CHECK(source.device() == HERE, "cannot set the storage of a tensor on ", HERE, " to one on ", source.device());
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(source);
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), offset.expect_int());
  return self;
}

Tensor& set_whole(Tensor& self, at::Storage source) {  // what copy.deepcopy of a tensor needs
  const auto elements = SymInt(static_cast<int64_t>(source.nbytes() / self.itemsize())), one = SymInt(1);
  return set_(self, source, SymInt(0), SymIntArrayRef(&elements, 1), SymIntArrayRef(&one, 1));
}

at::Scalar scalar(const Tensor& t) { return at::native::_local_scalar_dense_cpu(on_host(t)); }

void require_here(const Tensor& t, const std::string& operation, const std::string& argument) {
  TORCH_CHECK(!t.defined() || t.device() == HERE, "Expected all tensors to be on the same device, but ", operation, " got '", argument,
              "' on ", t.device(), " beside ", HERE);
}

Tensor convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, SymIntArrayRef stride,
                   SymIntArrayRef padding, SymIntArrayRef dilation, bool transposed, SymIntArrayRef output_padding, SymInt groups) {
  require_here(x, "convolution", "input");
  require_here(weight, "convolution", "weight");
  std::optional<Tensor> added;
  if (bias && bias->defined()) {
    require_here(*bias, "convolution", "bias");
    added = on_host(*bias);
  }
  return moved_here(at::convolution_symint(on_host(x), on_host(weight), added, stride, padding, dilation, transposed, output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, SymIntArrayRef stride, SymIntArrayRef padding, SymIntArrayRef dilation,
    bool transposed, SymIntArrayRef output_padding, SymInt groups, std::array<bool, 3> mask) {
  require_here(grad, "convolution_backward", "grad_output");
  require_here(x, "convolution_backward", "input");
  require_here(weight, "convolution_backward", "weight");
  const std::vector<SymInt> bias{transposed ? weight.sym_size(1) * groups : weight.sym_size(0)};
  auto [of_x, of_weight, of_bias] =
      at::convolution_backward_symint(on_host(grad), on_host(x), on_host(weight), SymIntArrayRef(bias), stride, padding, dilation,
                                      transposed, output_padding, groups, mask);
  return {moved_here(of_x), moved_here(of_weight), moved_here(of_bias)};
}

// Its schema does not say that it writes into the running statistics, so those of a copy would be lost.
std::tuple<Tensor, Tensor, Tensor> batch_norm(const Tensor& x, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                                              const std::optional<Tensor>& mean, const std::optional<Tensor>& variance, bool training,
                                              double momentum, double eps) {
  require_here(x, "native_batch_norm", "input");
  const auto host = [](const std::optional<Tensor>& t, const char* argument) -> std::optional<Tensor> {
    if (!t || !t->defined()) return std::nullopt;
    require_here(*t, "native_batch_norm", argument);
    return on_host(*t);
  };
  auto [y, saved_mean, saved_deviation] =
      at::native_batch_norm(on_host(x), host(weight, "weight"), host(bias, "bias"), host(mean, "running_mean"),
                            host(variance, "running_var"), training, momentum, eps);
  return {moved_here(y), moved_here(saved_mean), moved_here(saved_deviation)};
}

// --- everything else: the CPU's kernel, once all tensors are known to be here

void fall_back(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const std::string& name = op.schema().name();
  const bool indexing = name.rfind("aten::index", 0) == 0 || name.rfind("aten::_index_put", 0) == 0;
  const auto check = [&](const Tensor& t, const std::string& argument) {
    const bool number = t.defined() && t.dim() == 0 && t.device().is_cpu();
    // CUDA takes numbers and indices on the CPU as well.
    if (!number && !(indexing && argument == "indices")) require_here(t, name, argument);
  };
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& value = (*stack)[stack->size() - arguments.size() + i];
    if (value.isTensor()) {
      check(value.toTensor(), arguments[i].name());
    } else if (value.isTensorList()) {
      for (const Tensor& t : value.toTensorVector()) check(t, arguments[i].name());
    } else if (value.isOptionalTensorList()) {
      for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
        if (t) check(*t, arguments[i].name());
    }
  }
  at::native::cpu_fallback(op, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage", &set_whole);
  m.impl("set_.source_Storage_storage_offset", &set_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &scalar);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("native_batch_norm", &batch_norm);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fall_back>()); }

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  m.def("default_generator", [] { return hooks.getDefaultGenerator(0); });
}
