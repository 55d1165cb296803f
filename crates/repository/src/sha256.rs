//! SHA-256 of many messages at once: the processor's hash instructions wait for their own results, so two or
//! three independent messages in one loop take little longer than one.
//!
//! This is the one cryptographic primitive that is our own. It is compared with the library's when the program
//! starts, and a difference switches it off.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "the hash instructions of x86 are called where the processor has them")
)]

use std::sync::OnceLock;

use aws_lc_rs::digest;

/// Bytes that SHA-256 takes at a time.
const BLOCK: usize = 64;
/// Messages that are hashed in one loop; with more, registers run out.
const WIDTH: usize = 3;

/// SHA-256 of one message.
pub fn hash(data: &[u8]) -> [u8; 32] {
    digest_bytes(&digest::digest(&digest::SHA256, data))
}

fn digest_bytes(digest: &digest::Digest) -> [u8; 32] {
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Hashes several messages at once where the processor has instructions for it, else one after the other with
/// the library. Both give the same hashes.
#[derive(Clone, Copy, Debug)]
pub struct Lanes {
    enabled: bool,
}

impl Lanes {
    /// Lanes if the processor has them and they pass a self-test against the library.
    pub fn detect() -> Self {
        static DETECTED: OnceLock<bool> = OnceLock::new();
        let enabled = *DETECTED.get_or_init(|| instructions::available() && self_test());
        Lanes { enabled }
    }

    /// The library only.
    pub fn off() -> Self {
        Lanes { enabled: false }
    }

    /// Whether several messages are hashed at once.
    pub fn enabled(self) -> bool {
        self.enabled
    }

    /// SHA-256 of each message.
    pub fn hash_many(self, messages: &[&[u8]]) -> Vec<[u8; 32]> {
        let mut streams: Vec<Stream> = messages.iter().map(|_| Stream::new()).collect();
        let mut jobs: Vec<Job> =
            streams.iter_mut().zip(messages).map(|(stream, data)| Job::last(stream, data)).collect();
        self.run(&mut jobs);
        streams.into_iter().map(Stream::finish).collect()
    }

    /// Feeds each job's data into its stream, the longest first; a job that has run is spent.
    pub fn run(self, jobs: &mut [Job<'_>]) {
        if !self.enabled {
            return jobs.iter_mut().for_each(Job::run_by_library);
        }
        let mut queue: Vec<Lane<'_>> = jobs.iter_mut().filter_map(Job::prepare).collect();
        queue.sort_unstable_by_key(|lane| lane.body.len());
        let mut active: Vec<Lane<'_>> = Vec::with_capacity(WIDTH);
        loop {
            while active.len() < WIDTH
                && let Some(next) = queue.pop()
            {
                active.push(next);
            }
            let Some(steps) = active.iter().map(|lane| lane.body.len()).min() else { return };
            advance(&mut active, steps);
            active.retain_mut(Lane::more);
        }
    }
}

/// One message on its way through the loop.
struct Lane<'a> {
    state: &'a mut [u32; 8],
    body: &'a [[u8; BLOCK]],
    /// The blocks with the message's end, if this is its last piece.
    tail: &'a [[u8; BLOCK]],
}

impl Lane<'_> {
    /// Goes on to the tail; false at the end.
    fn more(&mut self) -> bool {
        if self.body.is_empty() {
            self.body = std::mem::take(&mut self.tail);
        }
        !self.body.is_empty()
    }
}

/// Takes the next `steps` blocks of every lane, of which there are one to three.
fn advance(lanes: &mut [Lane<'_>], steps: usize) {
    fn split<'a>(lane: &mut Lane<'a>, steps: usize) -> &'a [[u8; BLOCK]] {
        let (now, later) = lane.body.split_at(steps);
        lane.body = later;
        now
    }
    match lanes {
        [a, b, c] => {
            let blocks = [split(a, steps), split(b, steps), split(c, steps)];
            instructions::compress([a.state, b.state, c.state], blocks);
        }
        [a, b] => {
            let blocks = [split(a, steps), split(b, steps)];
            instructions::compress([a.state, b.state], blocks);
        }
        [a] => {
            let blocks = [split(a, steps)];
            instructions::compress([a.state], blocks);
        }
        _ => unreachable!("there are one to three lanes"),
    }
}

/// The state of one message that is hashed piece by piece.
pub struct Stream(State);

enum State {
    /// Nothing was fed yet.
    Empty,
    /// Fed by lanes.
    Own(Own),
    /// Fed by the library.
    Library(digest::Context),
}

struct Own {
    state: [u32; 8],
    /// Bytes fed.
    length: u64,
    /// What does not fill a block yet; at the message's end, padded to one or two.
    rest: [[u8; BLOCK]; 2],
    finished: bool,
}

impl Stream {
    /// The state of the empty message.
    pub fn new() -> Self {
        Stream(State::Empty)
    }

    /// The hash of everything fed.
    pub fn finish(mut self) -> [u8; 32] {
        if let State::Own(own) = &self.0
            && !own.finished
        {
            Lanes { enabled: true }.run(&mut [Job::last(&mut self, &[])]);
        }
        match self.0 {
            State::Empty => hash(&[]),
            State::Library(context) => digest_bytes(&context.finish()),
            State::Own(own) => {
                let mut hash = [0; 32];
                for (bytes, word) in hash.as_chunks_mut::<4>().0.iter_mut().zip(own.state) {
                    *bytes = word.to_be_bytes();
                }
                hash
            }
        }
    }
}

impl Default for Stream {
    fn default() -> Self {
        Stream::new()
    }
}

/// A piece of a message that is to be fed into its stream.
pub struct Job<'a> {
    stream: &'a mut Stream,
    data: &'a [u8],
    last: bool,
}

impl<'a> Job<'a> {
    /// Feeds `data` into `stream` when it is [run](Lanes::run).
    pub fn new(stream: &'a mut Stream, data: &'a [u8]) -> Self {
        Job { stream, data, last: false }
    }

    /// As [`new`](Self::new), where nothing will follow but [`Stream::finish`].
    pub fn last(stream: &'a mut Stream, data: &'a [u8]) -> Self {
        Job { stream, data, last: true }
    }

    fn run_by_library(&mut self) {
        let data = std::mem::take(&mut self.data);
        match &mut self.stream.0 {
            // Whoever began with lanes has them: the state is not the library's to continue.
            State::Own(_) => Lanes { enabled: true }.run(&mut [Job { data, ..self.reborrow() }]),
            State::Library(context) => context.update(data),
            State::Empty => {
                let mut context = digest::Context::new(&digest::SHA256);
                context.update(data);
                self.stream.0 = State::Library(context);
            }
        }
    }

    fn reborrow(&mut self) -> Job<'_> {
        Job { stream: self.stream, data: self.data, last: self.last }
    }

    /// Fills the block that the last piece left, and keeps what fills none; the whole blocks between are left to
    /// a lane.
    fn prepare(&mut self) -> Option<Lane<'_>> {
        let mut data = std::mem::take(&mut self.data);
        if let State::Empty = self.stream.0 {
            let own = Own { state: INITIAL, length: 0, rest: [[0; BLOCK]; 2], finished: false };
            self.stream.0 = State::Own(own);
        }
        let own = match &mut self.stream.0 {
            State::Own(own) => own,
            State::Library(context) => {
                context.update(data);
                return None;
            }
            State::Empty => unreachable!("it was filled above"),
        };
        let Own { state, length, rest, finished } = own;
        debug_assert!(!*finished, "nothing follows the last piece");
        let held = (*length % BLOCK as u64) as usize;
        *length += data.len() as u64;
        let mut held_now = held;
        if held > 0 {
            let taken = data.len().min(BLOCK - held);
            rest[0][held..held + taken].copy_from_slice(&data[..taken]);
            data = &data[taken..];
            held_now = held + taken;
            if held_now == BLOCK {
                instructions::compress([&mut *state], [&rest[..1]]);
                held_now = 0;
            }
        }
        let (body, end) = data.as_chunks::<BLOCK>();
        // Either the data ended within the block that was held, or that block is done.
        rest[0][held_now..held_now + end.len()].copy_from_slice(end);
        held_now += end.len();
        let mut blocks = 0;
        if std::mem::take(&mut self.last) {
            *finished = true;
            blocks = if held_now < BLOCK - 8 { 1 } else { 2 };
            let padding = &mut rest.as_flattened_mut()[held_now..blocks * BLOCK];
            padding.fill(0);
            padding[0] = 0x80;
            let bits = length.wrapping_mul(8).to_be_bytes();
            let start = padding.len() - bits.len();
            padding[start..].copy_from_slice(&bits);
        }
        let mut lane = Lane { state, body, tail: &rest[..blocks] };
        lane.more().then_some(lane)
    }
}

/// Compares lanes with the library on messages around every boundary, one to three at a time.
fn self_test() -> bool {
    let text: Vec<u8> = (0..700u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let lanes = Lanes { enabled: true };
    let ends = [0, 1, 55, 56, 63, 64, 65, 119, 120, 127, 128, 129, 500, 700];
    ends.windows(WIDTH).all(|ends| {
        let messages: Vec<&[u8]> = ends.iter().map(|end| &text[..*end]).collect();
        (1..=WIDTH).all(|width| {
            let expected = messages[..width].iter().map(|message| hash(message));
            expected.eq(lanes.hash_many(&messages[..width]))
        })
    })
}

/// First 32 bits of the fractional parts of the square roots of the first 8 primes (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] =
    [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];

/// No such instructions are known for other processors: the library is used.
#[cfg(not(target_arch = "x86_64"))]
mod instructions {
    use super::BLOCK;

    pub(super) fn available() -> bool {
        false
    }

    pub(super) fn compress<const N: usize>(_: [&mut [u32; 8]; N], _: [&[[u8; BLOCK]]; N]) {
        unreachable!("lanes are never enabled on this processor")
    }
}

#[cfg(target_arch = "x86_64")]
mod instructions {
    use std::arch::x86_64::*;

    use super::BLOCK;

    pub(super) fn available() -> bool {
        is_x86_feature_detected!("sha") && is_x86_feature_detected!("avx")
    }

    /// Feeds `N` messages' blocks, equally many each, into their states.
    pub(super) fn compress<const N: usize>(states: [&mut [u32; 8]; N], blocks: [&[[u8; BLOCK]]; N]) {
        // SAFETY: streams of lanes exist only where `available` has said that the processor has the features.
        unsafe { compress_with_sha(states, blocks) }
    }

    #[target_feature(enable = "sha,avx")]
    #[expect(clippy::needless_range_loop, reason = "the lanes of several arrays go in step")]
    fn compress_with_sha<const N: usize>(states: [&mut [u32; 8]; N], blocks: [&[[u8; BLOCK]]; N]) {
        let zero = _mm_setzero_si128();
        // The instructions want the eight words as ABEF and CDGH.
        let (mut abef, mut cdgh) = ([zero; N], [zero; N]);
        for lane in 0..N {
            let [low, high] = halves(states[lane]);
            let badc = _mm_shuffle_epi32(load(low), 0xb1);
            let hgfe = _mm_shuffle_epi32(load(high), 0x1b);
            abef[lane] = _mm_alignr_epi8(badc, hgfe, 8);
            cdgh[lane] = _mm_blend_epi16(hgfe, badc, 0xf0);
        }
        let big_endian = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        let count = blocks.iter().map(|blocks| blocks.len()).min().unwrap_or(0);
        for step in 0..count {
            let (abef_before, cdgh_before) = (abef, cdgh);
            let mut words = [[zero; 4]; N];
            for lane in 0..N {
                let quarters = blocks[lane][step].as_chunks::<16>().0;
                for (word, quarter) in words[lane].iter_mut().zip(quarters) {
                    *word = _mm_shuffle_epi8(load(quarter), big_endian);
                }
            }
            // Four rounds of all lanes; from the words W[i]…W[i+3] the next four are made up to W[63].
            macro_rules! four_rounds {
                ($($group:literal)*) => {$(
                    let constants = load(&ROUND[$group]);
                    for lane in 0..N {
                        let w = &mut words[lane];
                        let sum = _mm_add_epi32(w[$group % 4], constants);
                        cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], sum);
                        let sum = _mm_shuffle_epi32(sum, 0x0e);
                        abef[lane] = _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], sum);
                        if $group < 12 {
                            let (w0, w1) = (w[$group % 4], w[($group + 1) % 4]);
                            let (w2, w3) = (w[($group + 2) % 4], w[($group + 3) % 4]);
                            let next = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));
                            w[$group % 4] = _mm_sha256msg2_epu32(next, w3);
                        }
                    }
                )*};
            }
            four_rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            for lane in 0..N {
                abef[lane] = _mm_add_epi32(abef[lane], abef_before[lane]);
                cdgh[lane] = _mm_add_epi32(cdgh[lane], cdgh_before[lane]);
            }
        }
        for (lane, state) in states.into_iter().enumerate() {
            let feba = _mm_shuffle_epi32(abef[lane], 0x1b);
            let dchg = _mm_shuffle_epi32(cdgh[lane], 0xb1);
            let words = [_mm_blend_epi16(feba, dchg, 0xf0), _mm_alignr_epi8(dchg, feba, 8)];
            // SAFETY: both types are 32 bytes of plain integers.
            *state = unsafe { std::mem::transmute::<[__m128i; 2], [u32; 8]>(words) };
        }
    }

    fn halves(state: &[u32; 8]) -> [&[u32; 4]; 2] {
        let (halves, _) = state.as_chunks::<4>();
        [&halves[0], &halves[1]]
    }

    /// Loads the 16 bytes of a byte or word array.
    #[target_feature(enable = "sha,avx")]
    fn load<T: Copy, const N: usize>(from: &[T; N]) -> __m128i {
        const { assert!(size_of::<[T; N]>() == 16) }
        // SAFETY: the reference covers 16 bytes, as was asserted; the load needs no alignment.
        unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
    }

    /// First 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2).
    const ROUND: [[u32; 4]; 16] = [
        [0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5],
        [0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5],
        [0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3],
        [0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174],
        [0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc],
        [0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da],
        [0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7],
        [0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967],
        [0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13],
        [0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85],
        [0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3],
        [0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070],
        [0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5],
        [0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3],
        [0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208],
        [0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2],
    ];
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lanes_are_there_where_the_processor_has_the_instructions() {
        assert_eq!(Lanes::detect().enabled(), instructions::available());
        assert!(!Lanes::off().enabled());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn many_messages_hash_as_one_by_one(lengths in prop::collection::vec(0usize..3000, 0..12), seed in any::<u8>()) {
            let messages: Vec<Vec<u8>> = lengths.iter().map(|n| (0..*n).map(|i| (i * 31) as u8 ^ seed).collect()).collect();
            let messages: Vec<&[u8]> = messages.iter().map(|m| &m[..]).collect();
            let expected: Vec<_> = messages.iter().map(|m| hash(m)).collect();
            prop_assert_eq!(&Lanes::detect().hash_many(&messages), &expected);
            prop_assert_eq!(&Lanes::off().hash_many(&messages), &expected);
        }

        #[test]
        fn a_message_may_come_in_pieces_beside_others(pieces in prop::collection::vec(0usize..300, 0..20), beside in 0usize..500, first_off in any::<bool>(), second_off in any::<bool>()) {
            let lanes = |off: bool| if off { Lanes::off() } else { Lanes::detect() };
            let whole: Vec<u8> = (0..pieces.iter().sum::<usize>()).map(|i| (i / 3) as u8).collect();
            let other = vec![7; beside];
            let (mut stream, mut rest) = (Stream::new(), &whole[..]);
            for (i, piece) in pieces.iter().enumerate() {
                let (now, later) = rest.split_at(*piece);
                rest = later;
                let mut neighbour = Stream::new();
                lanes(if i == 0 { first_off } else { second_off })
                    .run(&mut [Job::new(&mut stream, now), Job::last(&mut neighbour, &other)]);
                prop_assert_eq!(neighbour.finish(), hash(&other));
            }
            prop_assert_eq!(stream.finish(), hash(&whole));
        }
    }
}
