// Numbers and times as people read them.

/** Dollars, all digits of small amounts included: a price may be parts of a cent. */
export function money(value) {
  if (value === null || value === undefined) return "–";
  return new Intl.NumberFormat("en-US", {
    style: "currency",
    currency: "USD",
    minimumFractionDigits: 2,
    maximumFractionDigits: Math.abs(value) < 0.01 ? 6 : 4,
  }).format(value);
}

/** Seconds in words that fit the size: 0.42 s, 9.3 s, 2 min 5 s, 3 h 20 min. */
export function seconds(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value < 1) return `${value.toFixed(2)} s`;
  if (value < 10) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  if (whole < 90) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  const minutes = Math.round(value / 60);
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Bytes in the unit that fits, which no line break parts from its number. */
export function bytes(value) {
  if (value < 1000) return `${value}\u00a0B`;
  if (value < 999_500) return `${(value / 1000).toFixed(0)}\u00a0kB`;
  if (value < 999_950_000) return `${(value / 1e6).toFixed(1)}\u00a0MB`;
  return `${(value / 1e9).toFixed(1)}\u00a0GB`;
}

export function count(value) {
  return new Intl.NumberFormat("en-US").format(value);
}

export function moment(iso) {
  if (!iso) return "–";
  const format = { dateStyle: "medium", timeStyle: "short" };
  return new Intl.DateTimeFormat("en-GB", format).format(new Date(iso));
}

export function ago(iso) {
  const gone = (Date.now() - new Date(iso).getTime()) / 1000;
  if (gone < 45) return "just now";
  if (gone < 3600) return `${Math.round(gone / 60)} min ago`;
  if (gone < 86_400) return `${Math.round(gone / 3600)} h ago`;
  return moment(iso);
}

export function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}
