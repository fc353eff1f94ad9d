// A fetch whose response body breaks off after so many bytes each time, as a network does; null and no more: never.
export function cutting(cuts) {
  return async (url, init) => {
    const response = await fetch(url, init);
    let left = cuts.shift() ?? null;
    if (left == null || response.body == null) return response;
    const reader = response.body.getReader();
    const body = new ReadableStream({
      async pull(controller) {
        const { done, value } = await reader.read();
        if (done) return controller.close();
        const piece = value.subarray(0, left);
        left -= piece.length;
        if (piece.length) controller.enqueue(piece);
        if (left <= 0) {
          await reader.cancel();
          controller.error(new TypeError("terminated"));
        }
      },
    });
    return new Response(body, { status: response.status, headers: response.headers });
  };
}
