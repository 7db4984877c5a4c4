// Numbers as text.

// A number without trailing zeros: 2.50 is 2.5, 2.00 is 2.
export function plain(number, digits = 6) {
  return String(Number(number.toFixed(digits)));
}

export function percent(share) {
  return `${Math.round(100 * share)} %`;
}

// Index of the value nearest to the wanted one, in a tie the first.
export function nearestIndex(values, wanted = values[0]) {
  return values.reduce((best, x, at) => (Math.abs(x - wanted) < Math.abs(values[best] - wanted) ? at : best), 0);
}

export const counted = (count) => count.toLocaleString("en-US");

// A share as ".83"; a dash if the total is zero.
export function shareText(part, of) {
  if (!of) return "–";
  const text = (part / of).toFixed(2);
  return text.startsWith("0") ? text.slice(1) : text;
}

// Digits by the largest value: ".83", "3.2", "412"; `digits` decimals if it is at most 1.
export function heatNumber(value, [least, most], digits = 2) {
  const size = Math.max(Math.abs(least), Math.abs(most));
  const decimals = size <= 1 ? digits : size < 10 ? digits - 1 : size < 100 ? digits - 2 : 0;
  return value
    .toFixed(decimals)
    .replace(/^(-?)0\./, "$1.")
    .replace(/^-(\.?0+)$/, "$1");
}

export function numberText(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(4)));
}

export function durationText(seconds) {
  const [minutes, hours, days] = [seconds / 60, seconds / 3600, seconds / 86400];
  if (days >= 2) return `${days.toFixed(1)} days`;
  if (hours >= 2) return `${hours.toFixed(1)} h`;
  return minutes >= 2 ? `${Math.round(minutes)} min` : `${Math.round(seconds)} s`;
}

export function hoursText(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
