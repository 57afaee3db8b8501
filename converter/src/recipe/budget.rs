//! Spending a budget of bytes where it helps most.

/// One way to write a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Offer {
    /// Bytes it takes.
    pub(super) bytes: u64,
    /// What it is expected to spoil; at least 0.
    pub(super) damage: f64,
}

/// A step from one offer of an item to a dearer one.
struct Step {
    item: usize,
    to: usize,
    bytes: u64,
    /// Damage undone per byte.
    gain: f64,
}

/// Picks one offer per item: the least damage found for at most `budget` bytes. When even the
/// cheapest offers cost more than that, these are picked.
///
/// Only offers on the lower convex hull of (bytes, damage) of their item are looked at; steps
/// along the hulls are taken by what they gain per byte. That is the optimum of the relaxed
/// problem but for the last step, and it depends on the order of nothing but equal gains, which
/// go to the earlier item.
pub(super) fn spend(items: &[Vec<Offer>], budget: u64) -> Vec<usize> {
    let mut picked = Vec::with_capacity(items.len());
    let mut steps = Vec::new();
    let mut left = budget;
    for (i, offers) in items.iter().enumerate() {
        let hull = hull(offers);
        let cheapest = hull.first().copied().unwrap_or(0);
        left = left.saturating_sub(offers.get(cheapest).map_or(0, |o| o.bytes));
        picked.push(cheapest);
        for pair in hull.windows(2) {
            let (a, b) = (offers[pair[0]], offers[pair[1]]);
            let bytes = b.bytes - a.bytes;
            steps.push(Step {
                item: i,
                to: pair[1],
                bytes,
                gain: (a.damage - b.damage) / bytes as f64,
            });
        }
    }
    // Stable: steps of one item stay in order, since gains fall along a hull.
    steps.sort_by(|a, b| b.gain.total_cmp(&a.gain));
    let mut over = vec![false; items.len()];
    for step in steps {
        // A step that was too dear closes the way to those behind it.
        if over[step.item] || step.bytes > left {
            over[step.item] = true;
            continue;
        }
        left -= step.bytes;
        picked[step.item] = step.to;
    }
    picked
}

/// The offers on the lower convex hull, by bytes: each dearer one has less damage, and gains per
/// byte fall.
fn hull(offers: &[Offer]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..offers.len()).collect();
    order.sort_by(|a, b| {
        let (a, b) = (offers[*a], offers[*b]);
        a.bytes.cmp(&b.bytes).then(a.damage.total_cmp(&b.damage))
    });
    let mut hull: Vec<usize> = Vec::new();
    for i in order {
        let new = offers[i];
        if hull.last().is_some_and(|l| new.damage >= offers[*l].damage) {
            continue;
        }
        while let [.., a, b] = hull.as_slice() {
            let (a, b) = (offers[*a], offers[*b]);
            let gain = |p: Offer, q: Offer| (p.damage - q.damage) / (q.bytes - p.bytes) as f64;
            if gain(a, b) > gain(b, new) {
                break;
            }
            hull.pop();
        }
        // Equal bytes: the first of them is the better one, and is there already.
        if hull.last().is_none_or(|l| offers[*l].bytes < new.bytes) {
            hull.push(i);
        }
    }
    hull
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(bytes: u64, damage: f64) -> Offer {
        Offer { bytes, damage }
    }

    fn total(items: &[Vec<Offer>], picked: &[usize]) -> (u64, f64) {
        let chosen = items.iter().zip(picked).map(|(o, p)| o[*p]);
        chosen.fold((0, 0.0), |(b, d), o| (b + o.bytes, d + o.damage))
    }

    #[test]
    fn the_sensitive_item_gets_the_bits() {
        let item = |scale: f64| [(2, 8.0), (3, 2.0), (4, 0.5)].map(|(b, d)| offer(b, d * scale));
        let items: Vec<Vec<Offer>> = [1.0, 100.0, 1.0].map(|s| item(s).to_vec()).into();
        assert_eq!(spend(&items, 9), [1, 2, 0]);
        assert_eq!(
            spend(&items, 0),
            [0, 0, 0],
            "nothing cheaper than the cheapest"
        );
        assert_eq!(spend(&items, 1000), [2, 2, 2]);
        assert_eq!(spend(&[], 5), Vec::<usize>::new());
    }

    #[test]
    fn offers_that_pay_for_nothing_are_not_taken() {
        // The second is above the line from the first to the third; the fourth is dearer and worse.
        let items = vec![vec![
            offer(2, 10.0),
            offer(3, 9.0),
            offer(4, 1.0),
            offer(5, 2.0),
        ]];
        assert_eq!(spend(&items, 3), [0]);
        assert_eq!(spend(&items, 4), [2]);
        assert_eq!(spend(&items, 9), [2]);
        // A copy costs no damage at all and less than what it would become.
        let items = vec![vec![offer(7, 0.1), offer(5, 0.0)]];
        assert_eq!(spend(&items, 9), [1]);
    }

    /// Against every combination, on many small problems: within the budget, and no more than a
    /// step from the best.
    #[test]
    fn close_to_the_best_combination_and_within_the_budget() {
        let mut state = 7_u64;
        let mut random = move |n: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) % n
        };
        for _ in 0..300 {
            let items: Vec<Vec<Offer>> = (0..5)
                .map(|_| {
                    let (size, scale) = (1 + random(40), 1.0 + random(50) as f64);
                    [2_u64, 3, 4, 6]
                        .map(|b| offer(b * size, scale * 0.25_f64.powi(b as i32)))
                        .to_vec()
                })
                .collect();
            let budget = items.iter().map(|o| o[1].bytes).sum::<u64>() + random(30);
            let picked = spend(&items, budget);
            let (bytes, damage) = total(&items, &picked);
            assert!(bytes <= budget, "{bytes} of {budget}");
            assert_eq!(picked, spend(&items, budget));
            let flat = total(&items, &[1; 5]).1;
            let mut best = f64::INFINITY;
            for n in 0..1024_usize {
                let all: Vec<usize> = (0..5).map(|i| n >> (2 * i) & 3).collect();
                let (b, d) = total(&items, &all);
                if b <= budget {
                    best = best.min(d);
                }
            }
            assert!(damage >= best - 1e-12);
            let worst_step = items
                .iter()
                .map(|o| o[0].damage - o[1].damage)
                .fold(0.0, f64::max);
            assert!(damage <= best + worst_step, "{damage} {best} {flat}");
        }
    }
}
