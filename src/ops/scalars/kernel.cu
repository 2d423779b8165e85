// Scalars at addresses listed in the argument, side by side as f64.
struct Scalar {
    const void* value;
    long long is_double;
};

struct Scalars {
    double* values;
    long long count;
    Scalar of[128];
};

extern "C" __global__ void __launch_bounds__(128) gather_scalars(const __grid_constant__ Scalars list) {
    const int i = threadIdx.x;
    if (i >= list.count) return;
    const Scalar& s = list.of[i];
    list.values[i] = s.is_double ? *static_cast<const double*>(s.value) : static_cast<double>(*static_cast<const float*>(s.value));
}
