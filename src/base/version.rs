//! What this program was built from, as `build.rs` tells.

/// The number of the release.
pub const NUMBER: &str = env!("CARGO_PKG_VERSION");
/// The commit: that of the clone that it was built in, or what `RECADO_COMMIT` said then; or `unknown`.
pub const COMMIT: &str = env!("RECADO_COMMIT");
/// What is built in beside what always is, separated by commas.
pub const FEATURES: &str = env!("RECADO_FEATURES");
/// All of it, in words.
pub const WHOLE: &str = env!("RECADO_VERSION");
