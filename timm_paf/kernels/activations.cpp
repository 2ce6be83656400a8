// Activations in one pass over memory: the formulas of timm_paf/activations/formulas.py for one number.
//
// Compiled once for each activation and dtype by compiler.py and called through ctypes, so that neither Python's nor
// torch's headers are needed. Everything is written as selections between numbers, never as branches, so that the
// compiler makes vector instructions of the loops.
//
// Notation: t = |alpha| x, u = exp(-|t|) = v w, where v is a normal number and w is 1 unless u is tiny; the product is
// formed last, because x exp(-100) is a number where exp(-100) is hardly one. sigmoid(|t|) = 1/(1 + u) = r, sigmoid(-|t|)
// = u r.
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using i64 = std::int64_t;

// a loop with a call in it is not made of vector instructions
#define INLINE inline __attribute__((always_inline))

template <class To, class From>
INLINE To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}

// ---- storage: float, double, and the two 16-bit formats, which are rounded once, to the nearest, ties to even

struct bfloat16 { std::uint16_t bits; };
struct float16 { std::uint16_t bits; };

INLINE float widen(float x) { return x; }
INLINE double widen(double x) { return x; }
INLINE float widen(bfloat16 x) { return bits_of<float>(std::uint32_t(x.bits) << 16); }
INLINE float widen(float16 x) {
    const std::uint32_t magnitude = std::uint32_t(x.bits & 0x7fffu) << 13;
    const float number = bits_of<float>(magnitude) * 0x1p112f;  // the exponents' offsets differ by 112
    const std::uint32_t special = bits_of<std::uint32_t>(number) | 0x7f800000u;  // infinity, NaN
    const std::uint32_t result = (x.bits & 0x7c00u) == 0x7c00u ? special : bits_of<std::uint32_t>(number);
    return bits_of<float>(result | std::uint32_t(x.bits & 0x8000u) << 16);
}

INLINE void narrow(float x, float& to) { to = x; }
INLINE void narrow(double x, double& to) { to = x; }
INLINE void narrow(float x, bfloat16& to) {
    const std::uint32_t bits = bits_of<std::uint32_t>(x);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to.bits = std::uint16_t(x != x ? 0x7fc0u : rounded);
}
INLINE void narrow(float x, float16& to) {
    const std::uint32_t bits = bits_of<std::uint32_t>(x), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
    const std::uint32_t normal = (size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13;
    // below 2^-14 the adder rounds: 0.5 has its last digit where a subnormal number of float16 has
    const std::uint32_t tiny = bits_of<std::uint32_t>(bits_of<float>(size) + 0.5f) - 0x3f000000u;
    std::uint32_t result = size < 0x38800000u ? tiny : normal;
    result = size >= 0x477ff000u ? 0x7c00u : result;  // 65520 and more
    result = size > 0x7f800000u ? 0x7e00u : result;
    to.bits = std::uint16_t(result | sign);
}

// ---- exp and log1p, within one unit in the last place; coefficients: Chebyshev fits in 200 bits

template <class F> struct Format;
template <> struct Format<float> {
    using Int = std::int32_t;
    static constexpr int mantissa = 23, bias = 127, low = 100;  // u < 2^-low is split
    static constexpr float least = -156.f;  // exp(least) x is 0 for every |x| < 1e18
    static constexpr float plain = 69.f;  // exp(-plain) x is a normal number for every x that is worth it
    static constexpr float round = 0x1.8p23f, log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    static constexpr float exp_series[] = {
        0.50000000134658092f, 0.16666666681623231f, 0.041666464925285905f, 0.0083333109254809008f,
        0.0013933649996309250f, 0.00019890990824673654f};
    static constexpr float log_series[] = {
        0.66666667320527413f, 0.39999706331929717f, 0.28592357994302838f, 0.21706575800880373f, 0.23224329224023349f};
    static constexpr float small = 0x1p-100f, large = 0x1p100f;
};
template <> struct Format<double> {
    using Int = std::int64_t;
    static constexpr int mantissa = 52, bias = 1023, low = 900;
    static constexpr double least = -1300., plain = 600.;
    static constexpr double round = 0x1.8p52, log2e = 1.4426950408889634, ln2_high = 0.6931471803691238,
                            ln2_low = 1.9082149292705877e-10;
    static constexpr double exp_series[] = {
        0.5, 0.16666666666666667, 0.041666666666666676774, 0.008333333333333334007, 0.0013888888888879073994,
        0.00019841269841263299129, 2.4801587336442237861e-5, 2.7557319247218730776e-6, 2.7557263279088496905e-7,
        2.5052071094293546753e-8, 2.0918137737642736429e-9, 1.6086627956780368844e-10};
    static constexpr double log_series[] = {
        0.66666666666666666661, 0.40000000000000015478, 0.28571428571421943297, 0.22222222223331986844,
        0.18181818086005655452, 0.15384620253804162399, 0.1333317694913817845, 0.1176799776724103616,
        0.10480399234365274052, 0.099420248965547346282, 0.063341108517702453959, 0.15231262619428984839};
    static constexpr double small = 0x1p-900, large = 0x1p900;
};

template <class F, int N>
INLINE F polynomial(const F (&series)[N], F x) {
    F sum = series[N - 1];
    for (int i = N - 2; i >= 0; --i) sum = sum * x + series[i];
    return sum;
}

template <class F> INLINE F below(F x, F limit) { return x > limit ? limit : x; }  // NaN goes through both
template <class F> INLINE F above(F x, F limit) { return x < limit ? limit : x; }
template <class F> INLINE F power(typename Format<F>::Int n) {
    return bits_of<F>(typename Format<F>::Int((n + Format<F>::bias) << Format<F>::mantissa));
}

// t = n log(2) + r; gives exp(r) - 1 and n
template <class F>
INLINE F reduced(F t, typename Format<F>::Int& n) {
    using P = Format<F>;
    const F shifted = t * P::log2e + P::round;
    const F whole = shifted - P::round;
    n = bits_of<typename P::Int>(shifted) - bits_of<typename P::Int>(F(P::round));
    const F r = (t - whole * P::ln2_high) - whole * P::ln2_low;
    return r + r * r * polynomial(P::exp_series, r);
}

// exp(t) for |t| < plain
template <class F>
INLINE F plain_exponential(F t) {
    typename Format<F>::Int n;
    const F rest = reduced(t, n), scale = power<F>(n);
    return rest * scale + scale;
}

template <class F> struct Exponential { F v, w, over_w; };

// exp(t) for t <= 0
template <class F>
INLINE Exponential<F> exponential(F t) {
    using P = Format<F>;
    typename P::Int n;
    const F rest = reduced(above(t, F(P::least)), n);
    const bool split = n < -P::low;
    const F v = (1 + rest) * power<F>(n + (split ? P::low : 0));
    return {t < F(P::least) ? F(0) : v, split ? F(P::small) : F(1), split ? F(P::large) : F(1)};
}

// exp(x) - 1 for x <= 0, or -plain < x <= 0
template <class F, bool Plain = false>
INLINE F expm1_negative(F x) {
    typename Format<F>::Int n;
    const F rest = reduced(Plain ? x : above(x, F(-80)), n);
    const F scale = power<F>(n);
    const F result = rest * scale + (scale - 1);
    return n == 0 ? rest : result;
}

// log(1 + u) for 0 <= u <= 1
template <class F>
INLINE F log1p_unit(F u) {
    const F s = u / (2 + u), z = s * s;
    return (s + s) + s * z * polynomial(Format<F>::log_series, z);
}

// ---- the activations: value(x, a, b) and slopes in x, a and b, where a and b are what stands in the formula; and the same
// under the names plain_… for |x| < plain(a), without what only the rest of the numbers needs

constexpr double far_out = 1e18, huge = 3.4e38;

template <class F> INLINE F near(F x) { return below(above(x, F(-far_out)), F(far_out)); }
template <class F> INLINE F absolute(F x) { return x < 0 ? -x : x; }
template <class F> INLINE F positive(F x) { return x < 0 ? F(0) : x; }  // NaN stays
template <class F> INLINE bool saturates(F a) { return a > F(1e-16); }
template <class F> INLINE F reach(bool vanishes) { return vanishes ? F(huge) : F(INFINITY); }

template <class F> struct Slopes { F x, a, b; };

template <class F> struct Identity {
    static F plain(F) { return Format<F>::plain; }
    static INLINE F alpha(F p) { return p; }
    static INLINE F alpha_slope(F) { return 1; }
    static INLINE F beta(F p) { return p; }
    static INLINE F beta_slope(F) { return 1; }
};

template <class F> struct Sharp : Identity<F> {
    static F plain(F a) { return a > Format<F>::plain / F(far_out) ? Format<F>::plain / a : F(far_out); }
    static INLINE F alpha(F p) { return below(absolute(p), F(1e4)); }
    static INLINE F alpha_slope(F p) { return p < 0 ? F(-1) : F(1); }
    static INLINE F beta(F p) { return below(absolute(p), F(0.99)); }
    static INLINE F beta_slope(F p) { return p < 0 ? F(-1) : F(1); }
};

template <class F> struct prelu0 : Identity<F> {
    static INLINE F value(F x, F a, F) { return x > 0 ? x : above(x, -reach<F>(a == 0)) * a; }
    static INLINE Slopes<F> slopes(F x, F a, F) { return {x > 0 ? F(1) : (x == x ? a : x), below(x, F(0)), F(0)}; }
    static INLINE F plain_value(F x, F a, F b) { return value(x, a, b); }
    static INLINE Slopes<F> plain_slopes(F x, F a, F b) { return slopes(x, a, b); }
};

template <class F> struct preluplus : Identity<F> {
    static INLINE F value(F x, F a, F) { return below(positive(x), reach<F>(a == 0)) * a; }
    static INLINE Slopes<F> slopes(F x, F a, F) { return {x > 0 ? a : (x == x ? F(0) : x), positive(x), F(0)}; }
    static INLINE F plain_value(F x, F a, F b) { return value(x, a, b); }
    static INLINE Slopes<F> plain_slopes(F x, F a, F b) { return slopes(x, a, b); }
};

template <class F> struct pelu : Identity<F> {
    static INLINE F value(F x, F a, F) { const F low = expm1_negative(below(x, F(0))) * a; return x > 0 ? x : low; }
    static INLINE Slopes<F> slopes(F x, F a, F) {
        const Exponential<F> e = exponential(below(x, F(0)));
        const F low = (e.v * a) * e.w;
        return {x > 0 ? F(1) : low, expm1_negative(below(x, F(0))), F(0)};
    }
    static INLINE F plain_value(F x, F a, F) {
        const F low = expm1_negative<F, true>(below(x, F(0))) * a;
        return x > 0 ? x : low;
    }
    static INLINE Slopes<F> plain_slopes(F x, F a, F) {
        const F t = below(x, F(0)), low = plain_exponential(t) * a;
        return {x > 0 ? F(1) : low, expm1_negative<F, true>(t), F(0)};
    }
};

template <class F> struct peluplus : Identity<F> {
    static INLINE F value(F x, F a, F) {
        const F low = expm1_negative(below(x, F(0)));
        return x > 0 ? below(x, reach<F>(a == 0)) * a : low;
    }
    static INLINE Slopes<F> slopes(F x, F a, F) {
        const Exponential<F> e = exponential(below(x, F(0)));
        const F low = e.v * e.w;
        return {x > 0 ? a : low, positive(x), F(0)};
    }
    static INLINE F plain_value(F x, F a, F) {
        const F low = expm1_negative<F, true>(below(x, F(0)));
        return x > 0 ? x * a : low;
    }
    static INLINE Slopes<F> plain_slopes(F x, F a, F) {
        const F low = plain_exponential(below(x, F(0)));
        return {x > 0 ? a : low, positive(x), F(0)};
    }
};

template <class F> struct reblu : Identity<F> {
    static INLINE F value(F x, F a, F) {
        const F p = positive(near(x)), chord = p / (std::sqrt(p * p + 1) + 1);
        return below(positive(x), reach<F>(a == -1)) * (chord * a + 1);
    }
    static INLINE Slopes<F> slopes(F x, F a, F) {
        const F p = positive(near(x)), root = std::sqrt(p * p + 1);
        const F dx = p / root * a + 1;
        return {x > 0 ? dx : (x == x ? F(0) : x), positive(x) * (p / (root + 1)), F(0)};
    }
    static INLINE F plain_value(F x, F a, F b) { return value(x, a, b); }
    static INLINE Slopes<F> plain_slopes(F x, F a, F b) { return slopes(x, a, b); }
};

template <class F> struct psoftplus : Sharp<F> {
    static INLINE F alpha(F p) { return above(below(absolute(p), F(1e4)), F(1e-3)); }
    static INLINE F rest(const Exponential<F>& u, F a) {  // log(1 + u)/a; where u is tiny it is u/a
        const F logarithm = log1p_unit(u.v);
        return (u.w < 1 ? u.v : logarithm) / a * u.w;
    }
    static INLINE F value(F x, F a, F) { return positive(x) + rest(exponential(-absolute(near(x) * a)), a); }
    static INLINE Slopes<F> slopes(F x, F a, F) {
        const F size = absolute(near(x) * a);
        const Exponential<F> u = exponential(-size);
        const F r = 1 / (1 + u.v * u.w), low = u.v * r;
        const F da = (absolute(near(x)) * u.w) * low + rest(u, a);
        return {x < 0 ? low * u.w : r, -da / a, F(0)};
    }
    static INLINE F plain_value(F x, F a, F) {
        return positive(x) + log1p_unit(plain_exponential(-absolute(x * a))) / a;
    }
    static INLINE Slopes<F> plain_slopes(F x, F a, F) {
        const F u = plain_exponential(-absolute(x * a)), r = 1 / (1 + u), low = u * r;
        const F da = absolute(x) * low + log1p_unit(u) / a;
        return {x < 0 ? low : r, -da / a, F(0)};
    }
};

template <class F> struct psilu : Sharp<F> {
    static INLINE F value(F x, F a, F) {
        const F t = near(x) * a;
        const Exponential<F> u = exponential(-absolute(t));
        const F r = 1 / (1 + u.v * u.w), bounded = above(x, -reach<F>(saturates(a)));
        return t < 0 ? (bounded * u.w) * (u.v * r) : bounded * r;
    }
    static INLINE Slopes<F> slopes(F x, F a, F) {
        const F bounded = near(x), t = bounded * a;
        const Exponential<F> u = exponential(-absolute(t));
        const F r = 1 / (1 + u.v * u.w), tr = t * r;
        const F right = (1 + tr * u.v * u.w) * r, left = ((1 + tr) * u.v) * r * u.w;
        return {t < 0 ? left : right, (bounded * r) * (bounded * r) * u.v * u.w, F(0)};
    }
    static INLINE F plain_value(F x, F a, F) { return x / (1 + plain_exponential(-(x * a))); }
    static INLINE Slopes<F> plain_slopes(F x, F a, F) {
        const F t = x * a, u = plain_exponential(-t), s = 1 / (1 + u), c = u * s;
        return {(1 + t * c) * s, (x * s) * (x * c), F(0)};
    }
};

// x (s - b)/(1 - b): for t >= 0, s - b = ((1 - b) - b u)/(1 + u); for t < 0, (u (1 - b) - b)/(1 + u)
template <class F> struct pssilu : Sharp<F> {
    static INLINE F value(F x, F a, F b) {
        const F t = near(x) * a;
        const Exponential<F> u = exponential(-absolute(t));
        const bool left = t < 0;
        const F limit = reach<F>(b == (saturates(a) ? F(0) : F(0.5)));
        const F bounded = below(above(x, -limit), limit);
        const F over = (1 / (1 - b)) / (1 + u.v * u.w);
        const F one = left ? u.v : F(1), other = left ? u.over_w : u.v * u.w;
        return ((left ? bounded * u.w : bounded) * over) * (one * (1 - b) - other * b);
    }
    static INLINE Slopes<F> slopes(F x, F a, F b) {
        const F bounded = near(x), t = bounded * a;
        const Exponential<F> u = exponential(-absolute(t));
        const bool left = t < 0;
        const F r = 1 / (1 + u.v * u.w), over = 1 / (1 - b), tail = left ? u.w : F(1);
        const F tr = t * r;
        const F one = left ? u.v * ((1 - b) + tr) : (1 - b) + tr * u.v * u.w;
        const F other = left ? u.over_w : u.v * u.w;
        const F dx = ((r * over) * (one - other * b)) * tail;
        const F da = (bounded * r) * (bounded * (r * over)) * u.v * u.w;
        const F limited = below(x, reach<F>(saturates(a)));
        const F far = left ? limited : limited * u.w, c = left ? r : u.v * r;
        return {dx, da, -(far * ((c * over) * over))};
    }
    // s (1 - b - b c/s): where s is near 1, the difference s - b has lost what 1 - b still has
    static INLINE F plain_value(F x, F a, F b) {
        const F u = plain_exponential(-(x * a)), s = (1 / (1 - b)) / (1 + u);
        return (x * s) * ((1 - b) - u * b);
    }
    static INLINE Slopes<F> plain_slopes(F x, F a, F b) {
        const F t = x * a, u = plain_exponential(-t), s = 1 / (1 + u), c = u * s, over = 1 / (1 - b);
        return {(s * over) * ((1 - b) + (t * c - u * b)), (x * s) * (x * (c * over)), -(x * (c * over)) * over};
    }
};

template <class F> struct pssilu_fixed : pssilu<F> {
    static INLINE F alpha(F p) { return below(p * p, F(1e4)); }
    static INLINE F alpha_slope(F p) { return 2 * below(above(p, F(-100)), F(100)); }
};

// ---- loops

constexpr i64 block = 4096;  // elements that are worked on together, whatever the number of threads

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

// Everything above for a stretch of memory, in pieces that stay in the first cache while they are looked at twice. A
// sum of up to `piece` terms is one of F, and one of those sums is of double.
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

// The order of every sum is that of the shape alone.
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

// Value (no g), gradient in x (no dalpha), or all gradients of -DACTIVATION for tensors of -DSTORAGE, computed in -DCOMPUTE.
extern "C" void timm_paf_run(
        const void* g, const void* x, void* out, const void* alpha, const void* beta, void* dalpha, void* dbeta,
        i64 outer, i64 channels, i64 inner, int threads) {
    using F = COMPUTE;
    using T = STORAGE;
    run<ACTIVATION<F>>(
        static_cast<const T*>(g), static_cast<const T*>(x), static_cast<T*>(out), static_cast<const F*>(alpha),
        static_cast<const F*>(beta), static_cast<F*>(dalpha), static_cast<F*>(dbeta), {outer, channels, inner}, threads);
}
