"use strict";
// A viewer of Gaussians (mpiprop/report/splats.py), y up, the front on +z.
// Drag to turn, scroll or pinch to zoom, double-click to reset.
// A quad over the ellipse of alpha >= 1/255 of each Gaussian (Zwicker et al. 2001), as mpiprop/render/splat.py has it.
const SPLAT_VERTEX = `#version 300 es
  precision highp float; precision highp int; precision highp usampler2D;
  in uint which; uniform usampler2D cloud; uniform mat4 view; uniform float focal, side; out vec2 d; out vec4 c;
  uvec4 words(int i) { int width = textureSize(cloud, 0).x; return texelFetch(cloud, ivec2(i % width, i / width), 0); }
  void main() {
    uvec4 first = words(int(which) * 3), second = words(int(which) * 3 + 1), third = words(int(which) * 3 + 2);
    vec3 p = (view * vec4(uintBitsToFloat(first.xyz), 1.)).xyz;
    c = vec4(first.w & 255u, first.w >> 8 & 255u, first.w >> 16 & 255u, first.w >> 24) / 255.;
    gl_Position = vec4(0., 0., 2., 1.);  // outside
    if (p.z > -.01 || c.a < 1. / 255.) return;
    vec4 s = uintBitsToFloat(second); vec2 t = uintBitsToFloat(third.xy);
    mat3 turn = mat3(view), spread = turn * mat3(s.x, s.y, s.z, s.y, s.w, t.x, s.z, t.x, t.y) * transpose(turn);
    vec2 tangent = p.xy / -p.z, held = clamp(tangent, -.65 * side / focal, .65 * side / focal);
    vec3 a = vec3(1., 0., held.x) * focal / -p.z, b = vec3(0., 1., held.y) * focal / -p.z;
    float xx = dot(a, spread * a) + .3, xy = dot(a, spread * b), yy = dot(b, spread * b) + .3;
    float angle = .5 * atan(2. * xy, xx - yy), middle = .5 * (xx + yy), more = length(vec2(.5 * (xx - yy), xy));
    vec2 axis = vec2(cos(angle), sin(angle)), corner = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2. - 1.;
    d = corner * sqrt(2. * log(c.a * 255.));
    vec2 offset = axis * d.x * sqrt(middle + more) + vec2(-axis.y, axis.x) * d.y * sqrt(max(middle - more, .1));
    gl_Position = vec4((tangent * focal + offset) * 2. / side, 0., 1.); }`;
const SPLAT_FRAGMENT = `#version 300 es
  precision highp float; in vec2 d; in vec4 c; out vec4 drawn;
  void main() { float alpha = min(.99, c.a * exp(-.5 * dot(d, d))); if (alpha < 1. / 255.) discard;
                drawn = vec4(c.rgb * alpha, alpha); }`;
const HOME = {turn: .6, tilt: .3, far: 2.9}, FOCAL = 1 / Math.tan(.4);  // far: in half diagonals of the box

function content(id) {
  return Uint8Array.from(atob(document.getElementById(id).textContent.trim()), c => c.charCodeAt(0));
}

function compiled(gl, vertex, fragment) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  gl.useProgram(program);
  return program;
}

function texture(gl, filter) {
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  for (const [name, value] of [["WRAP_S", gl.CLAMP_TO_EDGE], ["WRAP_T", gl.CLAMP_TO_EDGE], ["MIN_FILTER", filter], ["MAG_FILTER", filter]])
    gl.texParameteri(gl.TEXTURE_2D, gl["TEXTURE_" + name], value);
}

function splatsOf(canvas, gl) {  // -> the box, and what draws the Gaussians, the farthest first
  const words = new Uint32Array(content(canvas.dataset.splats).buffer), numbers = new Float32Array(words.buffer);
  const program = compiled(gl, SPLAT_VERTEX, SPLAT_FRAGMENT), n = words.length / 12, width = 3072, rows = Math.ceil(n / 1024);
  const texels = new Uint32Array(width * rows * 4);
  texels.set(words);
  texture(gl, gl.NEAREST);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32UI, width, rows, 0, gl.RGBA_INTEGER, gl.UNSIGNED_INT, texels);
  const which = gl.getAttribLocation(program, "which"), order = new Uint32Array(n), bins = new Uint16Array(n);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.enableVertexAttribArray(which);
  gl.vertexAttribIPointer(which, 1, gl.UNSIGNED_INT, 0, 0);
  gl.vertexAttribDivisor(which, 1);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  const depths = new Float32Array(n), [min, max] = JSON.parse(canvas.dataset.box);

  function sort(view) {  // by counting: 65,536 depths are told apart
    let low = Infinity, high = -Infinity;
    for (let i = 0; i < n; i++) {
      const z = depths[i] = view[2] * numbers[12 * i] + view[6] * numbers[12 * i + 1] + view[10] * numbers[12 * i + 2];
      low = Math.min(low, z);
      high = Math.max(high, z);
    }
    const starts = new Uint32Array(65537), scale = 65535 / (high - low || 1);
    for (let i = 0; i < n; i++) {
      bins[i] = (depths[i] - low) * scale;
      starts[bins[i] + 1]++;
    }
    for (let i = 0; i < 65536; i++) starts[i + 1] += starts[i];
    for (let i = 0; i < n; i++) order[starts[bins[i]]++] = i;
  }
  return {min, max, draw({view, side}) {
    sort(view);
    gl.bufferData(gl.ARRAY_BUFFER, order, gl.DYNAMIC_DRAW);
    gl.uniformMatrix4fv(gl.getUniformLocation(program, "view"), false, view);
    gl.uniform1f(gl.getUniformLocation(program, "focal"), FOCAL * side / 2);
    gl.uniform1f(gl.getUniformLocation(program, "side"), side);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, n);
  }};
}

function show(canvas) {
  const gl = canvas.getContext("webgl2", {antialias: false});
  if (!gl) {
    canvas.nextElementSibling.textContent = "The interactive view needs WebGL 2, which this browser does not offer.";
    return;
  }
  let pose = {...HOME}, waiting = false;
  const redraw = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
  const object = splatsOf(canvas, gl);
  const centre = object.min.map((low, i) => (low + object.max[i]) / 2);
  const radius = Math.hypot(...object.min.map((low, i) => (object.max[i] - low) / 2));

  function draw() {
    waiting = false;
    const side = Math.round(canvas.clientWidth * devicePixelRatio);
    if (canvas.width !== side) canvas.width = canvas.height = side;
    gl.viewport(0, 0, side, side);
    gl.clear(gl.COLOR_BUFFER_BIT);
    const {turn, tilt, far} = pose, [s, c, S, C] = [Math.sin(turn), Math.cos(turn), Math.sin(tilt), Math.cos(tilt)];
    const rows = [[c, 0, -s], [-S * s, C, -S * c], [C * s, S, C * c]];  // right, up, towards the eye
    const shift = rows.map(row => -row.reduce((sum, x, i) => sum + x * centre[i], 0));
    shift[2] -= far * radius;
    const view = [0, 1, 2].flatMap(i => [rows[0][i], rows[1][i], rows[2][i], 0]).concat(shift, 1);
    object.draw({view, side});
  }
  const nearer = factor => { pose.far = Math.min(8, Math.max(1.2, pose.far * factor)); redraw(); };

  const fingers = new Map();
  canvas.onpointerdown = e => { canvas.setPointerCapture(e.pointerId); fingers.set(e.pointerId, e); };
  canvas.onpointerup = canvas.onpointercancel = e => fingers.delete(e.pointerId);
  canvas.onpointermove = e => {
    const before = fingers.get(e.pointerId);
    if (!before) return;
    if (fingers.size === 2) {
      const other = [...fingers.values()].find(o => o.pointerId !== e.pointerId);
      const span = o => Math.hypot(o.clientX - other.clientX, o.clientY - other.clientY) + 1;
      nearer(span(before) / span(e));
    } else {
      pose.turn -= (e.clientX - before.clientX) * .01;
      pose.tilt = Math.min(1.5, Math.max(-1.5, pose.tilt + (e.clientY - before.clientY) * .01));
    }
    fingers.set(e.pointerId, e);
    redraw();
  };
  canvas.onwheel = e => { e.preventDefault(); nearer(Math.exp(e.deltaY * .001)); };
  canvas.ondblclick = () => { pose = {...HOME}; redraw(); };
  new ResizeObserver(redraw).observe(canvas);
}
document.querySelectorAll("canvas[data-splats]").forEach(show);
