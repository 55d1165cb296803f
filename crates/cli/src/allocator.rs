//! The allocator of this process: on a backup of a million small objects it takes a quarter less processor time
//! than the C library's, and gives memory back.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Settings that jemalloc reads when it starts: few arenas, and what is free goes back after a quarter of a second, so
/// that the peak stays near to what is in use. <https://jemalloc.net/jemalloc.3.html#tuning>
#[expect(unsafe_code, reason = "a symbol is the only way to hand settings to jemalloc before main")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static SETTINGS: &[u8; 46] = b"narenas:4,dirty_decay_ms:250,muzzy_decay_ms:0\0";
