// The activations, as in timm_paf/activations/formulas.py: value(x, a, b) and slopes in x, a and b, where a and b are
// the parameters of the formula. The names plain_... are the same for |x| < plain(a), without the parts that only other
// numbers need.
//
// Notation: t = |alpha| x, u = exp(-|t|) = v w, where v is a normal number and w is 1 unless u is tiny; the product is
// formed last, because x exp(-100) is a number where exp(-100) is hardly one. sigmoid(|t|) = 1/(1 + u) = r, and
// sigmoid(-|t|) = u r.
#pragma once
#include "numbers.h"

namespace {

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

}  // namespace
