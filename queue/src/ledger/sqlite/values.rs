//! Rows as a list of values with a place for each, so that one statement takes any number of them: through this driver each
//! statement costs a change of threads. They are not JSON, which `SQLite` reads again for each column of each row.

/// Jobs that are stored or end come in statements of at most so many rows; a claim has as many as it was asked for.
pub(super) const MOST_ROWS: usize = 256;

/// A list for so many rows, in number rounded up, so that there are few statements to keep prepared. What was added stays
/// unbound, which is null.
pub(super) fn values(columns: usize, rows: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(","));
    format!("values {}", vec![row; rows.next_power_of_two()].join(","))
}
