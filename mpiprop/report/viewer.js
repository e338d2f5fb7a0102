"use strict";
// Viewers of a mesh (GLB with a texture or vertex colours) and of Gaussians (mpiprop/report/splats.py), y up, the front on +z.
// Drag to turn, scroll or pinch to zoom, double-click to reset.
const MESH_VERTEX = `#version 300 es
  in vec3 position, normal, color; in vec2 place; uniform mat4 view, lens;
  out vec3 n, p, c; out vec2 uv;
  void main() { vec4 eye = view * vec4(position, 1.); p = eye.xyz; n = mat3(view) * normal; c = color; uv = place;
                gl_Position = lens * eye; }`;
const MESH_FRAGMENT = `#version 300 es
  precision highp float; in vec3 n, p, c; in vec2 uv; uniform sampler2D picture; out vec4 drawn;
  void main() { vec3 m = normalize(n), e = normalize(-p);
                float shade = .35 + .65 * max(dot(m, normalize(e + vec3(-.25, .45, 0.))), 0.);
                vec3 light = c * pow(texture(picture, uv).rgb, vec3(2.2));
                drawn = vec4(pow(light * shade, vec3(1. / 2.2)), 1.); }`;
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

function parse(bytes) {  // -> {position, normal, color, place, indices}, each an accessor's typed array, and a picture's file
  const data = new DataView(bytes.buffer), length = data.getUint32(12, true), start = 28 + length;
  const gltf = JSON.parse(new TextDecoder().decode(bytes.subarray(20, 20 + length)));
  const types = {5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array}, sizes = {SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4};
  const read = i => {
    const a = gltf.accessors[i], view = gltf.bufferViews[a.bufferView];
    const at = start + (view.byteOffset || 0) + (a.byteOffset || 0), Type = types[a.componentType];
    return {size: sizes[a.type], array: new Type(bytes.buffer.slice(at, at + a.count * sizes[a.type] * Type.BYTES_PER_ELEMENT))};
  };
  const {attributes, indices} = gltf.meshes[0].primitives[0];
  const {min, max} = gltf.accessors[attributes.POSITION];
  const optional = name => name in attributes ? read(attributes[name]) : null;
  const file = gltf.images && gltf.bufferViews[gltf.images[0].bufferView];
  return {position: read(attributes.POSITION), normal: read(attributes.NORMAL), indices: read(indices), min, max,
          color: optional("COLOR_0"), place: optional("TEXCOORD_0"),
          picture: file ? bytes.slice(start + file.byteOffset, start + file.byteOffset + file.byteLength) : null};
}

function meshOf(canvas, gl, redraw) {  // -> the box, and what draws the mesh from a camera
  const mesh = parse(content(canvas.dataset.glb)), program = compiled(gl, MESH_VERTEX, MESH_FRAGMENT);
  const fill = (target, array) => {
    gl.bindBuffer(target, gl.createBuffer());
    gl.bufferData(target, array, gl.STATIC_DRAW);
  };
  for (const name of ["position", "normal", "color", "place"]) {
    const place = gl.getAttribLocation(program, name), source = mesh[name];
    if (!source) { const grey = mesh.picture ? 1 : .6; gl.vertexAttrib3f(place, grey, grey, grey); continue; }
    fill(gl.ARRAY_BUFFER, source.array);
    gl.enableVertexAttribArray(place);
    const short = source.array instanceof Uint16Array;  // colours in files of former versions
    gl.vertexAttribPointer(place, source.size, short ? gl.UNSIGNED_SHORT : gl.FLOAT, short, 0, 0);
  }
  fill(gl.ELEMENT_ARRAY_BUFFER, mesh.indices.array);
  gl.enable(gl.DEPTH_TEST);
  texture(gl, gl.LINEAR);  // white until there is a picture
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, 1, 1, 0, gl.RGB, gl.UNSIGNED_BYTE, new Uint8Array([255, 255, 255]));
  if (mesh.picture) {
    const image = new Image();
    image.onload = () => { gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, image); redraw(); };
    image.src = URL.createObjectURL(new Blob([mesh.picture], {type: "image/png"}));
  }
  return {min: mesh.min, max: mesh.max, draw({view, far, radius}) {
    const near = Math.max(.02, far - 1.5) * radius, back = (far + 1.5) * radius;
    gl.uniformMatrix4fv(gl.getUniformLocation(program, "view"), false, view);
    gl.uniformMatrix4fv(gl.getUniformLocation(program, "lens"), false,
      [FOCAL, 0, 0, 0, 0, FOCAL, 0, 0, 0, 0, (back + near) / (near - back), -1, 0, 0, 2 * back * near / (near - back), 0]);
    gl.drawElements(gl.TRIANGLES, mesh.indices.array.length, gl.UNSIGNED_INT, 0);
  }};
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
  const gl = canvas.getContext("webgl2", {antialias: true});
  if (!gl) {
    canvas.nextElementSibling.textContent = "The interactive view needs WebGL 2, which this browser does not offer.";
    return;
  }
  let pose = {...HOME}, waiting = false;
  const redraw = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
  const object = canvas.dataset.glb ? meshOf(canvas, gl, redraw) : splatsOf(canvas, gl);
  const centre = object.min.map((low, i) => (low + object.max[i]) / 2);
  const radius = Math.hypot(...object.min.map((low, i) => (object.max[i] - low) / 2));

  function draw() {
    waiting = false;
    const side = Math.round(canvas.clientWidth * devicePixelRatio);
    if (canvas.width !== side) canvas.width = canvas.height = side;
    gl.viewport(0, 0, side, side);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const {turn, tilt, far} = pose, [s, c, S, C] = [Math.sin(turn), Math.cos(turn), Math.sin(tilt), Math.cos(tilt)];
    const rows = [[c, 0, -s], [-S * s, C, -S * c], [C * s, S, C * c]];  // right, up, towards the eye
    const shift = rows.map(row => -row.reduce((sum, x, i) => sum + x * centre[i], 0));
    shift[2] -= far * radius;
    const view = [0, 1, 2].flatMap(i => [rows[0][i], rows[1][i], rows[2][i], 0]).concat(shift, 1);
    object.draw({view, far, radius, side});
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
document.querySelectorAll("canvas").forEach(show);
