//! Functions of lists and sets (Kubernetes' lists library, cel-go's `ext.Lists` and `ext.Sets`).

use super::super::error::EvalError;
use super::super::eval::Scope;
use super::super::value::Value;
use super::{Row, int, items};

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

const COMPARABLE: &[&str] = &[
    "list(int).() -> bool",
    "list(uint).() -> bool",
    "list(double).() -> bool",
    "list(bool).() -> bool",
    "list(duration).() -> bool",
    "list(timestamp).() -> bool",
    "list(string).() -> bool",
    "list(bytes).() -> bool",
];
const EXTREMES: &[&str] = &[
    "list(int).() -> int",
    "list(uint).() -> uint",
    "list(double).() -> double",
    "list(bool).() -> bool",
    "list(duration).() -> duration",
    "list(timestamp).() -> timestamp",
    "list(string).() -> string",
    "list(bytes).() -> bytes",
];
const SET: &[&str] = &["(list(A), list(A)) -> bool"];

/// The functions.
pub const ROWS: &[Row] = &[
    ("isSorted", COMPARABLE, is_sorted),
    (
        "sum",
        &[
            "list(int).() -> int",
            "list(uint).() -> uint",
            "list(double).() -> double",
            "list(duration).() -> duration",
        ],
        sum,
    ),
    ("min", EXTREMES, min),
    ("max", EXTREMES, max),
    ("slice", &["list(A).(int, int) -> list(A)"], slice),
    (
        "flatten",
        &[
            "list(list(A)).() -> list(A)",
            "list(dyn).(int) -> list(dyn)",
        ],
        flatten,
    ),
    ("lists.range", &["(int) -> list(int)"], range),
    ("distinct", &["list(A).() -> list(A)"], distinct),
    ("reverse", &["list(A).() -> list(A)"], reverse),
    (
        "sort",
        &[
            "list(int).() -> list(int)",
            "list(uint).() -> list(uint)",
            "list(double).() -> list(double)",
            "list(bool).() -> list(bool)",
            "list(duration).() -> list(duration)",
            "list(timestamp).() -> list(timestamp)",
            "list(string).() -> list(string)",
            "list(bytes).() -> list(bytes)",
        ],
        sort,
    ),
    ("first", &["list(A).() -> optional(A)"], first),
    ("last", &["list(A).() -> optional(A)"], last),
    ("unwrapOpt", &["list(optional(A)).() -> list(A)"], unwrap),
    (
        "optional.unwrap",
        &["(list(optional(A))) -> list(A)"],
        unwrap,
    ),
    ("sets.contains", SET, sets_contains),
    ("sets.equivalent", SET, sets_equivalent),
    ("sets.intersects", SET, sets_intersects),
];

fn none<'a>() -> Result<'a> {
    Err(EvalError::no_such_overload())
}

/// The items of the first argument; each counts.
fn counted<'a>(
    scope: &mut Scope<'_, 'a>,
    args: &[Value<'a>],
) -> std::result::Result<Vec<Value<'a>>, EvalError> {
    let list = items(args.first().ok_or_else(EvalError::no_such_overload)?)?;
    scope.charge_items(list.len())?;
    Ok(list)
}

fn is_sorted<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let list = counted(scope, args)?;
    for pair in list.windows(2) {
        if let [a, b] = pair
            && a.compare(b)?.is_some_and(|order| order.is_gt())
        {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

fn sum<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let list = counted(scope, args)?;
    let overflow = || EvalError::message("return error for overflow");
    let mut total = match list.first() {
        // An empty list has no type of its own any more.
        None => return Ok(Value::Int(0)),
        Some(Value::Uint(_)) => Value::Uint(0),
        Some(Value::Double(_)) => Value::Double(0.0),
        Some(Value::Duration(_)) => Value::Duration(0),
        Some(_) => Value::Int(0),
    };
    for item in &list {
        total = match (&total, item) {
            (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_add(*b).ok_or_else(overflow)?),
            (Value::Uint(a), Value::Uint(b)) => {
                Value::Uint(a.checked_add(*b).ok_or_else(overflow)?)
            }
            (Value::Double(a), Value::Double(b)) => Value::Double(a + b),
            (Value::Duration(a), Value::Duration(b)) => {
                Value::Duration(a.checked_add(*b).ok_or_else(overflow)?)
            }
            _ => return none(),
        };
    }
    Ok(total)
}

fn extreme<'a>(
    scope: &mut Scope<'_, 'a>,
    args: &[Value<'a>],
    name: &str,
    better: fn(std::cmp::Ordering) -> bool,
) -> Result<'a> {
    let list = counted(scope, args)?;
    let mut best: Option<&Value<'a>> = None;
    for item in &list {
        let replaces = match best {
            None => true,
            Some(best) => item.compare(best)?.is_some_and(better),
        };
        if replaces {
            best = Some(item);
        }
    }
    best.cloned()
        .ok_or_else(|| EvalError::message(format!("{name} called on empty list")))
}

fn min<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    extreme(scope, args, "min", std::cmp::Ordering::is_lt)
}

fn max<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    extreme(scope, args, "max", std::cmp::Ordering::is_gt)
}

/// `indexOf` of a list; the name is shared with texts.
pub(super) fn position<'a>(
    scope: &mut Scope<'_, 'a>,
    list: &Value<'a>,
    wanted: &Value<'a>,
    last: bool,
) -> Result<'a> {
    let list = items(list)?;
    let mut found = -1;
    for (index, item) in list.iter().enumerate() {
        if scope.equal(item, wanted)? {
            found = i64::try_from(index).unwrap_or(i64::MAX);
            if !last {
                break;
            }
        }
    }
    Ok(Value::Int(found))
}

fn slice<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let list = counted(scope, args)?;
    let [_, start, end] = args else { return none() };
    let (start, end) = (int(start)?, int(end)?);
    let bad = |why: String| Err(EvalError::Message(why));
    if start < 0 || end < 0 {
        return bad(format!(
            "cannot slice({start}, {end}), negative indexes not supported"
        ));
    }
    if start > end {
        return bad(format!(
            "cannot slice({start}, {end}), start index must be less than or equal to end index"
        ));
    }
    match (usize::try_from(start), usize::try_from(end)) {
        (Ok(from), Ok(to)) if to <= list.len() => Ok(Value::list(list[from..to].to_vec())),
        _ => bad(format!(
            "cannot slice({start}, {end}), list is length {}",
            list.len()
        )),
    }
}

fn flattened<'a>(
    scope: &mut Scope<'_, 'a>,
    list: Vec<Value<'a>>,
    depth: i64,
    out: &mut Vec<Value<'a>>,
) -> std::result::Result<(), EvalError> {
    scope.charge_items(list.len())?;
    for item in list {
        match item.items() {
            Some(inner) if depth > 0 => flattened(scope, inner?, depth - 1, out)?,
            _ => out.push(item),
        }
    }
    Ok(())
}

fn flatten<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let depth = match args {
        [_, depth] => int(depth)?,
        _ => 1,
    };
    if depth < 0 {
        return Err(EvalError::message("level must be non-negative"));
    }
    let list = counted(scope, args)?;
    let mut out = Vec::new();
    // Lists nest no deeper than what they were read from.
    flattened(scope, list, depth.min(128), &mut out)?;
    Ok(Value::list(out))
}

fn range<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let count = match args {
        [Value::Int(count)] => (*count).max(0),
        _ => return none(),
    };
    scope.charge(u64::try_from(count).unwrap_or(0))?;
    Ok(Value::list((0..count).map(Value::Int).collect()))
}

fn distinct<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let list = counted(scope, args)?;
    let mut kept: Vec<Value<'a>> = Vec::new();
    'items: for item in list {
        scope.charge_items(kept.len())?;
        for one in &kept {
            if scope.equal(one, &item)? {
                continue 'items;
            }
        }
        kept.push(item);
    }
    Ok(Value::list(kept))
}

fn reverse<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let mut list = counted(scope, args)?;
    list.reverse();
    Ok(Value::list(list))
}

fn sort<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let list = counted(scope, args)?;
    let keys = list.clone();
    sorted_by(scope, list, keys)
}

/// Items in the order of their keys.
pub fn sorted_by<'a>(
    scope: &mut Scope<'_, 'a>,
    list: Vec<Value<'a>>,
    keys: Vec<Value<'a>>,
) -> Result<'a> {
    scope.charge_items(list.len())?;
    let mut failed = None;
    let mut pairs: Vec<(Value<'a>, Value<'a>)> = keys.into_iter().zip(list).collect();
    pairs.sort_by(|(a, _), (b, _)| match a.compare(b) {
        Ok(order) => order.unwrap_or(std::cmp::Ordering::Equal),
        Err(error) => {
            failed = Some(error);
            std::cmp::Ordering::Equal
        }
    });
    match failed {
        Some(_) => Err(EvalError::message("list elements must be comparable")),
        None => Ok(Value::list(
            pairs.into_iter().map(|(_, item)| item).collect(),
        )),
    }
}

fn maybe<'a>(value: Option<Value<'a>>) -> Result<'a> {
    Ok(value.map_or(Value::Optional(None), Value::some))
}

fn first<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [list] = args else { return none() };
    maybe(items(list)?.into_iter().next())
}

fn last<'a>(_: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let [list] = args else { return none() };
    maybe(items(list)?.pop())
}

fn unwrap<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let list = counted(scope, args)?;
    let mut out = Vec::new();
    for item in list {
        match item {
            Value::Optional(Some(inner)) => out.push(Value::clone(&inner)),
            Value::Optional(None) => {}
            _ => return none(),
        }
    }
    Ok(Value::list(out))
}

fn has<'a>(
    scope: &mut Scope<'_, 'a>,
    list: &[Value<'a>],
    wanted: &Value<'a>,
) -> std::result::Result<bool, EvalError> {
    for item in list {
        if scope.equal(item, wanted)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Both lists; cel-go counts the product of their sizes.
fn both<'a>(
    scope: &mut Scope<'_, 'a>,
    args: &[Value<'a>],
) -> std::result::Result<(Vec<Value<'a>>, Vec<Value<'a>>), EvalError> {
    let [a, b] = args else {
        return Err(EvalError::no_such_overload());
    };
    let (a, b) = (items(a)?, items(b)?);
    scope.charge_items(a.len().saturating_mul(b.len()))?;
    Ok((a, b))
}

fn sets_contains<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let (list, wanted) = both(scope, args)?;
    for one in &wanted {
        if !has(scope, &list, one)? {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

fn sets_equivalent<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let (a, b) = both(scope, args)?;
    for one in &a {
        if !has(scope, &b, one)? {
            return Ok(Value::Bool(false));
        }
    }
    for one in &b {
        if !has(scope, &a, one)? {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

fn sets_intersects<'a>(scope: &mut Scope<'_, 'a>, args: &[Value<'a>]) -> Result<'a> {
    let (a, b) = both(scope, args)?;
    for one in &a {
        if has(scope, &b, one)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}
