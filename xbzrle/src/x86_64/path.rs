//! What every instruction set's path has, made from its [`Lanes`](super::lanes::Lanes): the type
//! that proves that the CPU has it, and the walk compiled for it.

/// `walk_for!(about Path = lanes, "features, to compile for", ["features", "to", "detect"])`
macro_rules! walk_for {
    ($(#[$about:meta])* $path:ident = $lanes:ty, $enabled:literal, [$($feature:tt),+ $(,)?]) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $path(());

        impl $path {
            /// The proof, if the CPU gives it.
            pub fn detect() -> Option<Self> {
                ($(std::arch::is_x86_feature_detected!($feature))&&+).then_some(Self(()))
            }

            pub(crate) fn encode<const N: usize>(
                self,
                old: &[u8; N],
                new: &[u8; N],
                out: &mut [u8],
            ) -> crate::Outcome {
                let pages =
                    super::walk::Pages { old: old.as_ptr().cast_mut(), new: new.as_ptr(), ahead: None };
                // SAFETY: `self` exists, so the CPU has all that the function asks for. Without
                // `LIVE`, nothing is written.
                unsafe { encode::<false, N>(pages, out) }
            }

            /// # Safety
            ///
            /// As for [`encode_live`](crate::encode_live), and `live` is aligned to 64 bytes.
            pub(crate) unsafe fn encode_live<const N: usize>(
                self,
                cached: &mut [u8; N],
                live: *const u8,
                out: &mut [u8],
                ahead: Option<crate::Ahead>,
            ) -> crate::Outcome {
                let pages = super::walk::Pages { old: cached.as_mut_ptr(), new: live, ahead };
                // SAFETY: `self` exists, so the CPU has all that the function asks for; the rest is
                // the caller's promise.
                unsafe { encode::<true, N>(pages, out) }
            }

            /// # Safety
            ///
            /// As for [`walk::copy_live`](super::walk::copy_live).
            pub(crate) unsafe fn copy_live<const N: usize>(self, to: &mut [u8; N], live: *const u8) {
                #[target_feature(enable = $enabled)]
                unsafe fn copy_live<const N: usize>(to: &mut [u8; N], live: *const u8) {
                    // SAFETY: this function is compiled for the instruction set; the rest is the
                    // caller's promise.
                    unsafe { super::walk::copy_live::<$lanes, N>(to, live) }
                }
                // SAFETY: `self` exists, so the CPU has the instruction set; the rest is the
                // caller's promise.
                unsafe { copy_live(to, live) }
            }

            /// # Safety
            ///
            /// As for [`walk::is_zero`](super::walk::is_zero).
            pub(crate) unsafe fn is_zero(self, live: *const u8, len: usize) -> bool {
                #[target_feature(enable = $enabled)]
                unsafe fn is_zero(live: *const u8, len: usize) -> bool {
                    // SAFETY: this function is compiled for the instruction set; the rest is the
                    // caller's promise.
                    unsafe { super::walk::is_zero::<$lanes>(live, len) }
                }
                // SAFETY: `self` exists, so the CPU has the instruction set; the rest is the
                // caller's promise.
                unsafe { is_zero(live, len) }
            }
        }

        /// # Safety
        ///
        /// As for [`walk::encode`](super::walk::encode).
        #[target_feature(enable = $enabled)]
        unsafe fn encode<const LIVE: bool, const N: usize>(
            pages: super::walk::Pages<LIVE, N>,
            out: &mut [u8],
        ) -> crate::Outcome {
            // SAFETY: this function is compiled for the instruction set, and so is `rest`; the rest
            // is the caller's promise.
            unsafe { super::walk::encode::<$lanes, LIVE, N>(pages, out, rest) }
        }

        /// # Safety
        ///
        /// As for [`walk::encode_rest`](super::walk::encode_rest).
        #[inline(never)]
        #[target_feature(enable = $enabled)]
        unsafe fn rest<const LIVE: bool, const N: usize>(
            pages: super::walk::Pages<LIVE, N>,
            out: &mut [u8],
            rest: Option<super::walk::Rest<$lanes>>,
        ) -> crate::Outcome {
            // SAFETY: this function is compiled for the instruction set; the rest is the caller's
            // promise.
            unsafe { super::walk::encode_rest::<$lanes, LIVE, N>(pages, out, rest) }
        }
    };
}

pub(super) use walk_for;
