//! Entry points: the kernels of this module, compiled with the features of a processor.

/// Entry points for the processors that have `$features`, over their vector: `products, soften`, or
/// `products as products_dot` where the name is taken.
///
/// All are unsafe to call but where the features are there; besides, the contract is that of the
/// kernel of the same name. `products` are those of rows `rows` of `weights`, whose type `integer::covers`,
/// and all activation rows; columns `rows` of `out` must be the caller's to write.
macro_rules! entries {
    ($features:tt, $vector:ty: $($kernel:ident $(as $name:ident)?),+) => {
        $($crate::exec::cpu::integer::entry!($features, $vector, $kernel $(as $name)?);)+
    };
}
pub(in super::super) use entries;

/// One of them.
macro_rules! entry {
    ($features:tt, $vector:ty, $kernel:ident) => {
        $crate::exec::cpu::integer::entry!($features, $vector, $kernel as $kernel);
    };
    ($features:tt, $vector:ty, products as $name:ident) => {
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $name(
            weights: $crate::exec::cpu::integer::Matrix<'_>,
            rows: std::ops::Range<usize>,
            x: &$crate::exec::cpu::integer::Codes,
            out: $crate::exec::cpu::matmul::Out,
        ) {
            use $crate::exec::cpu::integer::Rows;
            use $crate::exec::cpu::integer::chain::Chain;
            use $crate::exec::cpu::integer::panel::Tile;
            use $crate::exec::cpu::integer::tile::{Blocks, Part, for_type, tiles};

            // Functions of their own: in one they are so much for the compiler that what it does for
            // one type depends on another.
            macro_rules! kernel {
                ($kernel:ident, $panel:ty, $one:literal) => {
                    #[target_feature(enable = $features)]
                    #[inline(never)]
                    unsafe fn $kernel<T: Blocks<$vector>, C: Chain<$vector, T>>(part: &Part<'_>) {
                        // SAFETY: by the contract.
                        unsafe { tiles::<$vector, T, C, $panel, $one>(part) }
                    }
                };
            }
            kernel!(one, Rows, true);
            kernel!(many, Rows, false);
            kernel!(one_of_tiles, Tile<T>, true);
            kernel!(many_of_tiles, Tile<T>, false);

            let ty = weights.block_type;
            for part in Part::all(weights, rows, x, out) {
                // SAFETY: parts are of type `ty`, their sizes have been looked at, and it is said whether
                // they are of one row and how they lie; columns `rows` of `out` are the caller's.
                unsafe {
                    match (part.tiled(), part.is_one()) {
                        (None, true) => for_type!(ty, one, &part),
                        (None, false) => for_type!(ty, many, &part),
                        (Some(_), true) => for_type!(ty, one_of_tiles, &part),
                        (Some(_), false) => for_type!(ty, many_of_tiles, &part),
                    }
                }
            }
        }
    };
    ($features:tt, $vector:ty, kv_scores as $name:ident) => {
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $name(
            shape: $crate::cache::KvShape,
            head: &[u8],
            from: usize,
            n: usize,
            q: &[$crate::exec::cpu::integer::CodeBlock],
            next: *const u8,
            scores: &mut [f32],
        ) {
            // SAFETY: by the contract.
            unsafe {
                $crate::exec::cpu::integer::kv_scores::<$vector>(
                    shape, head, from, n, q, next, scores,
                );
            }
        }
    };
    ($features:tt, $vector:ty, kv_sums as $name:ident) => {
        #[target_feature(enable = $features)]
        #[allow(clippy::too_many_arguments)] // a kernel's
        pub(crate) unsafe fn $name(
            shape: $crate::cache::KvShape,
            head: &[u8],
            from: usize,
            n: usize,
            seen: &dyn Fn(usize) -> usize,
            weights: &[f32],
            next: [*const u8; 2],
            sums: &mut [f32],
        ) {
            // SAFETY: by the contract.
            unsafe {
                $crate::exec::cpu::integer::kv_sums::<$vector>(
                    shape, head, from, n, seen, weights, next, sums,
                );
            }
        }
    };
    ($features:tt, $vector:ty, float_scores as $name:ident) => {
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $name(
            q: &$crate::exec::cpu::kv_floats::Queries<'_>,
            keys: $crate::exec::cpu::kv_floats::Kept<'_>,
            seen: $crate::exec::cpu::kv_floats::Seen,
            scale: f32,
            next: *const u8,
            scores: &mut [f32],
        ) {
            // SAFETY: by the contract.
            unsafe {
                $crate::exec::cpu::kv_floats::scores::<$vector>(q, keys, seen, scale, next, scores);
            }
        }
    };
    ($features:tt, $vector:ty, float_sums as $name:ident) => {
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $name(
            weights: &[f32],
            values: $crate::exec::cpu::kv_floats::Kept<'_>,
            shape: (usize, usize),
            seen: $crate::exec::cpu::kv_floats::Seen,
            next: *const u8,
            sums: &mut [f32],
        ) {
            // SAFETY: by the contract.
            unsafe {
                $crate::exec::cpu::kv_floats::add_sums::<$vector>(
                    weights, values, shape, seen, next, sums,
                );
            }
        }
    };
    ($features:tt, $vector:ty, key_tile as $name:ident) => {
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $name(keys: &[u8], n: usize, dim: usize, tile: &mut [f32]) {
            // SAFETY: by the contract.
            unsafe { $crate::exec::cpu::kv_floats::key_tile::<$vector>(keys, n, dim, tile) }
        }
    };
    ($features:tt, $vector:ty, soften as $name:ident) => {
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $name(scores: &mut [f32], n: usize) -> [f32; 2] {
            $crate::exec::cpu::integer::soften(scores, n)
        }
    };
}
pub(in super::super) use entry;
