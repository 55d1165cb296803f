//! Runs the embedded S3 server until standard input ends, for measurements and for trying things out.
//!
//! `cargo run --release -p cistern-testkit --example serve [BUCKET...]` prints endpoint, access key and secret
//! key on one line. The buckets are there, and empty.

#![expect(clippy::print_stdout, reason = "this is a program")]

use std::io::Read;

fn main() -> std::io::Result<()> {
    let server = cistern_testkit::Server::start()?;
    for name in std::env::args().skip(1) {
        server.bucket(&name);
    }
    println!("{} {} {}", server.endpoint(), cistern_testkit::Server::ACCESS_KEY, server.secret_key());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
