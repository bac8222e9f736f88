//! The columns of Table answers, per printer (the type that upstream's printers take).

use std::collections::HashMap;
use std::sync::LazyLock;

/// One column of a Table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// OpenAPI type of the cells.
    pub kind: &'static str,
    /// OpenAPI format of the cells; `name` marks the column of the object's name.
    pub format: &'static str,
    /// 0 is always shown, 1 only in wide output.
    pub priority: i32,
}

/// The columns of a printer, such as `pod` or `roleBindings`; `None` for an unknown one. The name is the facts'
/// variable name, which for most kinds is the kind with a lower-case first letter.
pub fn columns(printer: &str) -> Option<&'static [Column]> {
    static ALL: LazyLock<HashMap<&'static str, Vec<Column>>> = LazyLock::new(|| {
        let mut all: HashMap<&'static str, Vec<Column>> = HashMap::new();
        for line in include_str!("columns.tsv").lines().skip(1) {
            let cells: Vec<&'static str> = line.split('\t').collect();
            let [printer, name, kind, format, priority] = cells[..] else {
                continue;
            };
            all.entry(printer).or_default().push(Column {
                name,
                kind,
                format,
                priority: priority.parse().unwrap_or(0),
            });
        }
        all
    });
    ALL.get(printer).map(Vec::as_slice)
}
