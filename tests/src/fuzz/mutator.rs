//! A mutator: takes an input of the corpus, and changes it a few times.

use super::Corpus;

/// No input is longer.
const LONGEST: usize = 64 * 1024;

/// Numbers at which programs stumble.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1e400",
    "-0.0",
    "255",
    "65536",
    "9007199254740993",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "253402300800",
    "8210266876800000",
];

/// Texts at which programs stumble.
const TEXTS: [&str; 10] = [
    "\0",
    "\\u0000",
    "\\ud800",
    "\u{feff}",
    "\u{fffe}",
    "\r\n",
    "\"",
    "'",
    "\u{10ffff}",
    "2016-12-31T23:59:60.9999999Z",
];

/// Inputs without end, the same for the same seed.
pub(super) struct Mutator<'a> {
    corpus: &'a Corpus,
    dice: Dice,
}

impl<'a> Mutator<'a> {
    pub(super) fn new(corpus: &'a Corpus, seed: u64) -> Self {
        Self { corpus, dice: Dice(seed) }
    }

    pub(super) fn next_input(&mut self) -> Vec<u8> {
        let mut input = self.seed().clone();
        for _ in 0..=self.dice.below(6) {
            self.mutate(&mut input);
        }
        input.truncate(LONGEST);
        input
    }

    fn seed(&mut self) -> &'a Vec<u8> {
        &self.corpus.seeds[self.dice.below(self.corpus.seeds.len())]
    }

    fn mutate(&mut self, input: &mut Vec<u8>) {
        let (start, end) = self.range(input.len());
        match self.dice.below(10) {
            0 if start < input.len() => input[start] ^= 1 << self.dice.below(8),
            1 if start < input.len() => input[start] = self.dice.byte(),
            2 => drop(input.drain(start..end)),
            3 => drop(input.splice(start..end, NUMBERS[self.dice.below(NUMBERS.len())].bytes())),
            4 => drop(input.splice(start..start, TEXTS[self.dice.below(TEXTS.len())].bytes())),
            5 => {
                let other = self.seed();
                let (from, to) = self.range(other.len());
                input.splice(start..end, other[from..to].iter().copied());
            }
            6 => self.repeat(input, start, end),
            7 if !self.corpus.pairs.is_empty() => self.nest(input, start, end),
            8 => self.number(input),
            _ if !self.corpus.words.is_empty() => {
                let word = self.corpus.words[self.dice.below(self.corpus.words.len())];
                let end = if self.dice.below(2) == 0 { start } else { end };
                input.splice(start..end, word.bytes());
            }
            _ => input.insert(start, self.dice.byte()),
        }
    }

    /// Two places in order, mostly near each other.
    fn range(&mut self, length: usize) -> (usize, usize) {
        let start = self.dice.below(length + 1);
        let reach = if self.dice.below(4) == 0 { length } else { 16 };
        (start, (start + self.dice.below(reach + 1)).min(length))
    }

    /// How often: mostly a few times, now and then very often.
    fn times(&mut self) -> usize {
        [2, 3, 10, 100, 1_000, 5_000][self.dice.below(6)]
    }

    fn repeat(&mut self, input: &mut Vec<u8>, start: usize, end: usize) {
        let times = self.times().min(LONGEST / (end - start).max(1));
        let repeated = input[start..end].repeat(times);
        input.splice(start..end, repeated);
    }

    fn nest(&mut self, input: &mut Vec<u8>, start: usize, end: usize) {
        let (open, close) = self.corpus.pairs[self.dice.below(self.corpus.pairs.len())];
        let times = self.times();
        input.splice(end..end, close.repeat(times).into_bytes());
        input.splice(start..start, open.repeat(times).into_bytes());
    }

    /// Puts another number in the place of one.
    fn number(&mut self, input: &mut Vec<u8>) {
        let digits: Vec<usize> = (0..input.len()).filter(|place| input[*place].is_ascii_digit()).collect();
        if digits.is_empty() {
            return;
        }
        let start = digits[self.dice.below(digits.len())];
        let end = (start..input.len()).find(|place| !input[*place].is_ascii_digit()).unwrap_or(input.len());
        input.splice(start..end, NUMBERS[self.dice.below(NUMBERS.len())].bytes());
    }
}

/// Splitmix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() % (end as u64).max(1)).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.roll().to_le_bytes()[0]
    }
}
