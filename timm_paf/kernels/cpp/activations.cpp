// Activations in one pass over memory.
//
// Compiled once for each activation and dtype by compiler.py and called through ctypes, so that neither Python's nor
// torch's headers are needed.
#include <vector>

#include "formulas.h"

namespace {

constexpr i64 block = 4096;  // elements that one task computes, for any number of threads

struct Shape { i64 outer, channels, inner; };  // x[outer][channels][inner]; channels 1 for one parameter

template <class F> struct Parameters {
    std::vector<F> a, b;
    F limit;  // plain(a) of all of them
    template <class Act>
    static Parameters of(const F* alpha, const F* beta, i64 count) {
        Parameters p{std::vector<F>(count), std::vector<F>(count), F(INFINITY)};
        for (i64 c = 0; c < count; ++c) {
            p.a[c] = Act::alpha(alpha[c]);
            p.b[c] = beta ? Act::beta(beta[c]) : F(0);
            const F plain = Act::plain(p.a[c]);
            p.limit = plain < p.limit ? plain : p.limit;
        }
        return p;
    }
};

template <class Body>
inline void in_parallel(i64 count, int threads, const Body& body) {
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (i64 i = 0; i < count; ++i) body(i);
        return;
    }
#endif
    for (i64 i = 0; i < count; ++i) body(i);
}

inline i64 smaller(i64 a, i64 b) { return a < b ? a : b; }

// whether |x| < limit for all of them; NaN is not
template <class T, class F>
INLINE bool all_below(const T* __restrict x, i64 n, F limit) {
    using Int = typename Format<F>::Int;
    const Int most = bits_of<Int>(limit), size_bits = Int(~(Int(1) << (8 * sizeof(Int) - 1)));
    Int greatest = 0;  // numbers without a sign are ordered as their bits are
#pragma omp simd reduction(max : greatest)
    for (i64 i = 0; i < n; ++i) {
        const Int size = bits_of<Int>(widen(x[i])) & size_bits;
        greatest = size > greatest ? size : greatest;
    }
    return greatest < most;
}

// One parameter (Row false) or one for each element; Plain as said above.
template <class Act, bool Row, bool Plain, class T, class F>
void values(const T* __restrict x, T* __restrict y, i64 n, const F* __restrict a, const F* __restrict b) {
    const F a0 = a[0], b0 = b[0];
#pragma omp simd
    for (i64 i = 0; i < n; ++i) {
        const F ai = Row ? a[i] : a0, bi = Row ? b[i] : b0;
        narrow(Plain ? Act::plain_value(widen(x[i]), ai, bi) : Act::value(widen(x[i]), ai, bi), y[i]);
    }
}

template <class Act, bool Row, bool Plain, class T, class F>
void input_gradients(
        const T* __restrict x, const T* __restrict g, T* __restrict dx, i64 n,
        const F* __restrict a, const F* __restrict b) {
    const F a0 = a[0], b0 = b[0];
#pragma omp simd
    for (i64 i = 0; i < n; ++i) {
        const F ai = Row ? a[i] : a0, bi = Row ? b[i] : b0, xi = widen(x[i]);
        narrow(F(widen(g[i]) * (Plain ? Act::plain_slopes(xi, ai, bi) : Act::slopes(xi, ai, bi)).x), dx[i]);
    }
}

template <class Act, bool Plain, class T, class F>
void gradients_of_one(
        const T* __restrict x, const T* __restrict g, T* __restrict dx, i64 n, F a, F b,
        double* __restrict sum_a, double* __restrict sum_b) {
    F part_a = 0, part_b = 0;
#pragma omp simd reduction(+ : part_a, part_b)
    for (i64 i = 0; i < n; ++i) {
        const F grad = widen(g[i]), xi = widen(x[i]);
        const Slopes<F> s = Plain ? Act::plain_slopes(xi, a, b) : Act::slopes(xi, a, b);
        narrow(F(grad * s.x), dx[i]);
        part_a += grad * s.a;
        part_b += grad * s.b;
    }
    *sum_a += part_a;
    *sum_b += part_b;
}

template <class Act, bool Plain, class T, class F>
void gradients_of_each(
        const T* __restrict x, const T* __restrict g, T* __restrict dx, i64 n,
        const F* __restrict a, const F* __restrict b, double* __restrict sum_a, double* __restrict sum_b) {
#pragma omp simd
    for (i64 i = 0; i < n; ++i) {
        const F grad = widen(g[i]), xi = widen(x[i]);
        const Slopes<F> s = Plain ? Act::plain_slopes(xi, a[i], b[i]) : Act::slopes(xi, a[i], b[i]);
        narrow(F(grad * s.x), dx[i]);
        sum_a[i] += grad * s.a;
        sum_b[i] += grad * s.b;
    }
}

// Everything above for a stretch of memory, `piece` elements at a time, which stay in the first-level cache between two
// reads. A sum of up to `piece` terms is in F, and the sum of these sums is in double.
template <class Act, bool Row, class T, class F>
void stretch(
        const T* g, const T* x, T* out, i64 n, const F* a, const F* b, F limit,
        double* sum_a = nullptr, double* sum_b = nullptr) {
    constexpr i64 piece = 512;
    for (i64 at = 0; at < n; at += piece) {
        const i64 m = smaller(piece, n - at), c = Row ? at : 0;
        const bool plain = all_below(x + at, m, limit);
        if (!g) {
            if (plain) values<Act, Row, true>(x + at, out + at, m, a + c, b + c);
            else values<Act, Row, false>(x + at, out + at, m, a + c, b + c);
        } else if (!sum_a) {
            if (plain) input_gradients<Act, Row, true>(x + at, g + at, out + at, m, a + c, b + c);
            else input_gradients<Act, Row, false>(x + at, g + at, out + at, m, a + c, b + c);
        } else if (Row) {
            if (plain) gradients_of_each<Act, true>(x + at, g + at, out + at, m, a + c, b + c, sum_a + c, sum_b + c);
            else gradients_of_each<Act, false>(x + at, g + at, out + at, m, a + c, b + c, sum_a + c, sum_b + c);
        } else {
            if (plain) gradients_of_one<Act, true>(x + at, g + at, out + at, m, a[0], b[0], sum_a, sum_b);
            else gradients_of_one<Act, false>(x + at, g + at, out + at, m, a[0], b[0], sum_a, sum_b);
        }
    }
}

template <class Act, class T, class F>
void elementwise(const T* g, const T* x, T* out, const Parameters<F>& p, Shape shape, int threads) {
    const i64 channels = shape.channels, inner = shape.inner;
    const F *a = p.a.data(), *b = p.b.data();
    if (channels == 1) {
        const i64 total = shape.outer * inner;
        in_parallel((total + block - 1) / block, threads, [&](i64 i) {
            const i64 at = i * block;
            stretch<Act, false>(g ? g + at : g, x + at, out + at, smaller(block, total - at), a, b, p.limit);
        });
    } else if (inner == 1) {
        in_parallel(shape.outer, threads, [&](i64 i) {
            const i64 at = i * channels;
            stretch<Act, true>(g ? g + at : g, x + at, out + at, channels, a, b, p.limit);
        });
    } else {
        in_parallel(shape.outer * channels, threads, [&](i64 i) {
            const i64 at = i * inner, c = i % channels;
            stretch<Act, false>(g ? g + at : g, x + at, out + at, inner, a + c, b + c, p.limit);
        });
    }
}

// The order of every sum depends only on the shape.
template <class Act, class T, class F>
void with_sums(
        const T* g, const T* x, T* dx, const Parameters<F>& p, Shape shape, int threads, double* sum_a, double* sum_b) {
    const i64 channels = shape.channels, inner = shape.inner;
    const F *a = p.a.data(), *b = p.b.data();
    if (channels > 1 && inner > 1) {
        in_parallel(channels, threads, [&](i64 c) {
            for (i64 o = 0; o < shape.outer; ++o) {
                const i64 at = (o * channels + c) * inner;
                stretch<Act, false>(g + at, x + at, dx + at, inner, a + c, b + c, p.limit, sum_a + c, sum_b + c);
            }
        });
        return;
    }
    const i64 length = channels == 1 ? inner : channels, total = shape.outer * length;
    const i64 rows = channels == 1 ? block : (shape.outer + 63) / 64 * channels, blocks = (total + rows - 1) / rows;
    std::vector<double> part_a(blocks * channels, 0.), part_b(blocks * channels, 0.);
    in_parallel(blocks, threads, [&](i64 i) {
        double *to_a = &part_a[i * channels], *to_b = &part_b[i * channels];
        const i64 end = smaller((i + 1) * rows, total);
        if (channels == 1) {
            const i64 at = i * rows;
            stretch<Act, false>(g + at, x + at, dx + at, end - at, a, b, p.limit, to_a, to_b);
            return;
        }
        for (i64 at = i * rows; at < end; at += channels)
            stretch<Act, true>(g + at, x + at, dx + at, channels, a, b, p.limit, to_a, to_b);
    });
    for (i64 i = 0; i < blocks; ++i)
        for (i64 c = 0; c < channels; ++c)
            sum_a[c] += part_a[i * channels + c], sum_b[c] += part_b[i * channels + c];
}

template <class Act, class T, class F>
void run(
        const T* g, const T* x, T* out, const F* alpha, const F* beta, F* dalpha, F* dbeta, Shape shape, int threads) {
    const i64 channels = shape.channels;
    const auto p = Parameters<F>::template of<Act>(alpha, beta, channels);
    if (!dalpha) return elementwise<Act>(g, x, out, p, shape, threads);
    std::vector<double> sum_a(channels, 0.), sum_b(channels, 0.);
    with_sums<Act>(g, x, out, p, shape, threads, sum_a.data(), sum_b.data());
    for (i64 c = 0; c < channels; ++c) {
        dalpha[c] = F(sum_a[c] * double(Act::alpha_slope(alpha[c])));
        if (dbeta) dbeta[c] = F(sum_b[c] * double(Act::beta_slope(beta[c])));
    }
}

}  // namespace

// Value (no g), gradient in x (no dalpha), or all gradients of -DACTIVATION for tensors of -DSTORAGE, computed in
// -DCOMPUTE.
extern "C" void timm_paf_run(
        const void* g, const void* x, void* out, const void* alpha, const void* beta, void* dalpha, void* dbeta,
        i64 outer, i64 channels, i64 inner, int threads) {
    using F = COMPUTE;
    using T = STORAGE;
    run<ACTIVATION<F>>(
        static_cast<const T*>(g), static_cast<const T*>(x), static_cast<T*>(out), static_cast<const F*>(alpha),
        static_cast<const F*>(beta), static_cast<F*>(dalpha), static_cast<F*>(dbeta), {outer, channels, inner},
        threads);
}
