//! What a kernel needs of a vector: lanes are rows of weights.

// Pieces without a target feature of their own must be inlined into entry points that have it.
#![allow(clippy::inline_always)]

/// Places in as many weight rows as a vector has lanes.
#[derive(Clone, Copy)]
pub(in super::super) struct Rows {
    /// The places in rows 0, 4, 8 and 12: those of the next three rows are an addition away that is part
    /// of a read, so that few registers name all rows.
    fours: [*const u8; 4],
    /// Bytes from one row to the next.
    stride: usize,
}

impl Rows {
    /// The place `first` in row 0, and those in the rows that begin `stride` bytes after one another.
    #[inline]
    pub(in super::super) fn new(first: *const u8, stride: usize) -> Self {
        Self {
            fours: [0, 4, 8, 12].map(|i| first.wrapping_add(i * stride)),
            stride,
        }
    }

    /// The same places `n` bytes on. To the compiler they are addresses of which it knows nothing: it would
    /// compute one for each row, and has no registers to keep them.
    #[inline(always)]
    pub(in super::super) fn on<V: Vector>(self, n: usize) -> Self {
        let mut fours = self.fours.map(|p| p.wrapping_add(n));
        for p in &mut fours[..V::LANES / 4] {
            #[allow(clippy::pointers_in_nomem_asm_block)]
            // the block does not read what they point to
            // SAFETY: no instruction; nothing is read or changed.
            unsafe {
                std::arch::asm!(
                    "/* {0} */",
                    inout(reg) * p,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
        }
        Self { fours, ..self }
    }

    /// The place in row `i`, `at` bytes on.
    #[inline(always)]
    pub(in super::super) fn at<T>(&self, i: usize, at: usize) -> *const T {
        self.fours[i / 4]
            .wrapping_add(i % 4 * self.stride + at)
            .cast()
    }
}

/// Vectors of 32-bit lanes, one a weight row; a lane is also four bytes, four weights in a row.
///
/// # Safety
/// All functions need the instruction set of the implementor, and are to be inlined into a
/// function that has it.
pub(in super::super) trait Vector: Copy {
    /// As many floats.
    type F: Copy;
    /// Lanes, 8 or 16.
    const LANES: usize;
    /// Whether weights of 8 bits are multiplied as signed ones: their codes less 128.
    const SIGNED: bool;
    /// Whether two activation rows at once cost less than one after the other.
    const PAIRS: bool = false;
    /// Whether the weights of two blocks of 32 fit into the registers together, with what they need.
    const TWO: bool = false;

    /// 16 bytes at `at` in each row, as their four 32-bit words.
    ///
    /// # Safety
    /// The instruction set; 16 bytes readable at `at` from each of `LANES` rows.
    unsafe fn words(rows: &Rows, at: usize) -> [Self; 4];

    /// The 32-bit word at `at` in each row.
    ///
    /// # Safety
    /// The instruction set; four bytes readable at `at` from each of `LANES` rows.
    unsafe fn word(rows: &Rows, at: usize) -> Self;

    /// Lanes from memory.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn load(p: &[u32; 16]) -> Self;

    /// The same byte everywhere.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn bytes(b: u8) -> Self;

    /// The same 32 bits in each lane.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn lanes(v: i32) -> Self;

    /// Bitwise and.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn and(self, o: Self) -> Self;

    /// Bitwise or.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn or(self, o: Self) -> Self;

    /// Bitwise exclusive or.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn xor(self, o: Self) -> Self;

    /// Lanes shifted right, zeros coming in.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn shr(self, n: usize) -> Self;

    /// Lanes shifted right, the sign coming in.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn sar(self, n: usize) -> Self;

    /// Lanes shifted left.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn shl(self, n: usize) -> Self;

    /// Lanes shifted left, or right where `n` is negative; what comes in is not defined.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn turn(self, n: i32) -> Self;

    /// `table[byte]` for each byte, all below 16.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn lookup(self, table: &[u8; 16]) -> Self;

    /// Byte `j` of a lane: 16 if bit `4·word + j` of the lane is set, else 0.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn fifth(self, word: usize) -> Self;

    /// `init` plus the products of `4·N` weights, unsigned and at most `MAX`, and the codes at
    /// `x`. Where [`SIGNED`](Self::SIGNED), weights of `MAX` 255 count less 128.
    ///
    /// # Safety
    /// The instruction set; `4·N` codes readable at `x`.
    unsafe fn dot<const N: usize, const MAX: u8>(init: Self, w: &[Self; N], x: *const i8) -> Self;

    /// Lanes from memory, at any address.
    ///
    /// # Safety
    /// The instruction set; `4·LANES` bytes readable.
    unsafe fn at(p: *const u8) -> Self;

    /// Signed bytes from memory, each to 16 bits: two a lane.
    ///
    /// # Safety
    /// The instruction set; `2·LANES` bytes readable.
    unsafe fn widen(p: *const u8) -> Self;

    /// 16-bit halves of lanes shifted right, the sign coming in.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn sar16<const N: i32>(self) -> Self;

    /// 16-bit halves of lanes as numbers of `16 − N` bits, the rest left out.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn signed<const N: i32>(self) -> Self;

    /// `acc` plus both products of the 16-bit halves of each lane of `v` with the two numbers at
    /// `c`, wrapping.
    ///
    /// # Safety
    /// The instruction set; two numbers readable.
    unsafe fn pairs(acc: Self, v: Self, c: *const i16) -> Self;

    /// Two weights a lane, whole numbers of 16 bits, as [`weigh`](Self::weigh) wants them.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn couple(weights: [Self; 2]) -> [Self; 2];

    /// `i·w + j·v` in each lane, all of them whole numbers of 16 bits; `w` and `v` by
    /// [`couple`](Self::couple).
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn weigh(i: Self, j: Self, weights: &[Self; 2]) -> Self;

    /// Half floats from memory.
    ///
    /// # Safety
    /// The instruction set; `2·LANES` bytes readable.
    unsafe fn halves(p: *const u8) -> Self::F;

    /// [`dot`](Self::dot) for two activation rows.
    ///
    /// # Safety
    /// As there, for both.
    #[inline(always)]
    unsafe fn dot_pair<const N: usize, const MAX: u8>(
        init: [Self; 2],
        w: &[Self; N],
        x: [*const i8; 2],
    ) -> [Self; 2] {
        // SAFETY: by the contract.
        unsafe {
            [
                Self::dot::<N, MAX>(init[0], w, x[0]),
                Self::dot::<N, MAX>(init[1], w, x[1]),
            ]
        }
    }

    /// As floats.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn float(self) -> Self::F;

    /// The lower half of each lane, a half float.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn half(self) -> Self::F;

    /// Lanes that are floats already.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn same(self) -> Self::F;

    /// The same float everywhere.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn splat(v: f32) -> Self::F;

    /// Floats from memory.
    ///
    /// # Safety
    /// The instruction set; `LANES` floats readable.
    unsafe fn get(p: *const f32) -> Self::F;

    /// Floats to memory.
    ///
    /// # Safety
    /// The instruction set; `LANES` floats writable.
    unsafe fn put(p: *mut f32, v: Self::F);

    /// `a · b`.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;

    /// `a · b + c`, fused.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;

    /// No instruction. `v` is computed here, and what reads memory behind this stays there: the compiler would
    /// read all that several blocks need and compute afterwards, with most of it on the stack in between.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn now(v: Self::F) -> Self::F;

    /// `−a`.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn neg(a: Self::F) -> Self::F;

    /// Asks for the line at `p`, which may be any address, to come into the first cache, or where
    /// `FAR` nearer than memory but not so near that it would push out what is in use.
    ///
    /// # Safety
    /// The instruction set.
    unsafe fn prefetch<const FAR: bool>(p: *const u8);
}
